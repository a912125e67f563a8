//! Tracing set-up: a console on one rank, a file per rank in the run directory, in a folder of its node: one folder of all would
//! have as many files as the world has ranks.
//!
//! Console lines go to stderr without a rank prefix: `srun --label` adds one. `HERD_LOG` sets the level or a filter
//! (`HERD_LOG=debug`, `HERD_LOG=herd::train=trace`); the default is `info`.

use super::progress::Beside;
use crate::appended::{is_at, open};
use crate::error::{Error, Exit, Result};
use crate::run_dir::RunDir;
use std::fs::{create_dir_all, File};
use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::{Duration, Instant};
use tracing_subscriber::filter::ParseError;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::FormatTime;
use tracing_subscriber::prelude::*;
use tracing_subscriber::{fmt, EnvFilter};

/// Where a rank logs to.
pub struct RankLog<'a> {
    /// Run directory; the log goes to `logs/NODE` in it.
    pub run_dir: &'a Path,
    /// Name of this node: Slurm's, else the host's.
    pub node: &'a str,
    /// Rank in the world, from 0.
    pub rank: usize,
}

/// Starts logging. `console`: also write to stderr (rank 0). With `file`, append to `run_dir/logs/NODE/rank-NNNNN.log`. A second
/// call in one process changes nothing.
///
/// # Errors
/// The log file cannot be opened, or `HERD_LOG` is no filter.
pub fn init(console: bool, file: Option<RankLog>) -> Result<()> {
    let console = match console {
        true => {
            let layer = fmt::layer().with_writer(|| Beside).with_ansi(std::io::stderr().is_terminal());
            Some(layer.compact().with_target(false).with_timer(Clock("%H:%M:%S")).with_filter(filter()?))
        }
        false => None,
    };
    let file = match file {
        Some(RankLog { run_dir, node, rank }) => {
            let run = RunDir::new(run_dir);
            let dir = run.node_logs(node);
            create_dir_all(&dir).map_err(|e| Error::io(&dir, "create", &e, Exit::Storage))?;
            let path = run.rank_log(node, rank);
            let file = open(&path)?;
            let layer =
                fmt::layer().with_writer(Mutex::new(Followed { file, path, looked: Instant::now() })).with_ansi(false);
            Some(layer.with_timer(Clock("%Y-%m-%dT%H:%M:%S%.3fZ")).with_filter(filter()?))
        }
        None => None,
    };
    let _ = tracing_subscriber::registry().with(console).with(file).try_init();
    Ok(())
}

/// A log that may be rotated: a file that is no longer at its path is opened anew, looked for at most once a second.
struct Followed {
    file: File,
    path: PathBuf,
    looked: Instant,
}

impl Write for Followed {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        if self.looked.elapsed() > Duration::from_secs(1) {
            self.looked = Instant::now();
            // where it cannot be opened, the old file takes the lines as before
            match is_at(&self.file, &self.path) {
                true => {}
                false => self.file = open(&self.path).unwrap_or(self.file.try_clone()?),
            }
        }
        self.file.write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.file.flush()
    }
}

/// The object store's client tells of every request that it tries again.
const DEFAULT: &str = "info,object_store=warn";

fn filter() -> Result<EnvFilter> {
    let text = std::env::var("HERD_LOG").ok().filter(|s| !s.is_empty()).unwrap_or_else(|| DEFAULT.into());
    let wrong = |e: &dyn std::fmt::Display| {
        Error::new(Exit::Usage, format!("HERD_LOG={text}: {e}"))
            .hint("use error, warn, info, debug, trace, or module=level")
    };
    let mut filter = EnvFilter::try_new(&text).map_err(|e| wrong(&e))?;
    // Below `info` these tell what goes over the wire, and requests carry credentials.
    for quiet in ["hyper=info", "hyper_util=info", "h2=info", "reqwest=info", "rustls=info"] {
        filter = filter.add_directive(quiet.parse().map_err(|e: ParseError| wrong(&e))?);
    }
    Ok(filter)
}

/// UTC in a strftime format: the same clock on every node's file.
struct Clock(&'static str);

impl FormatTime for Clock {
    fn format_time(&self, w: &mut Writer<'_>) -> std::fmt::Result {
        write!(w, "{}", jiff::Timestamp::now().strftime(self.0))
    }
}
