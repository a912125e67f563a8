//! The program that a job's ranks run: the one that the job was first started with, also when the file was replaced since. As long as
//! a supervisor lives, Linux keeps its own program (`/proc/self/exe`); where the file at its path is another, that is copied into the
//! run directory, and every later start of the job runs the copy.

use crate::durable::write_atomic;
use crate::error::{Error, Exit, Result};
use crate::run_dir::RunDir;
use crate::slurm::Job;
use serde::{Deserialize, Serialize};
use std::fs::{File, OpenOptions};
use std::io::Read;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use xxhash_rust::xxh3::Xxh3;

const OWN: &str = "/proc/self/exe";
static OWN_NOTE: OnceLock<Noted> = OnceLock::new();

/// A job's program.
pub struct Program {
    /// Where it was started from.
    path: PathBuf,
    /// Where it is kept once the file there is another.
    kept: PathBuf,
    /// Whether the copy is what ranks run.
    is_kept: bool,
}

/// What a job's first start has noted of it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Noted {
    path: PathBuf,
    version: String,
    bytes: u64,
    /// XXH3-128 of its bytes, hexadecimal.
    xxh3: String,
}

impl Program {
    /// The program of `job`, which is noted at its first start. One that is not this process's is started in its place, with the
    /// same arguments, where it was kept.
    ///
    /// # Errors
    /// [`Exit::World`]: this is another program than the job was first started with, and that one is gone; [`Exit::Storage`].
    pub fn settle(run_dir: &Path, job: &Job) -> Result<Program> {
        let (run, address) = (RunDir::new(run_dir), job.address());
        let (note, kept) = (run.job_program_note(&address), run.job_program(&address));
        // a process runs one program
        let own = match OWN_NOTE.get() {
            Some(own) => own.clone(),
            None => noted(Path::new(OWN), own_path())?,
        };
        let _ = OWN_NOTE.set(own.clone());
        let before = match std::fs::read(&note) {
            Ok(text) => serde_json::from_slice::<Noted>(&text)
                .inspect_err(|e| tracing::warn!("{} is damaged and written anew: {e}", note.display()))
                .ok(),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => None,
            Err(e) => return Err(Error::io(&note, "read", &e, Exit::Storage)),
        };
        let Some(before) = before else {
            let text = serde_json::to_string_pretty(&own).map_err(|e| Error::new(Exit::Internal, e.to_string()))?;
            write_atomic(&note, format!("{text}\n").as_bytes())?;
            return Ok(Program { path: own.path, kept, is_kept: false });
        };
        if own.xxh3 == before.xxh3 {
            let is_kept = own.path == kept || std::path::absolute(&kept).is_ok_and(|k| k == own.path);
            return Ok(Program { path: before.path, kept, is_kept });
        }
        if kept.exists() {
            tracing::warn!(
                "{} is not the program that job {} was started with: {} goes on",
                own.path.display(),
                job.address(),
                kept.display()
            );
            let e = std::process::Command::new(&kept).args(std::env::args_os().skip(1)).exec();
            return Err(Error::io(&kept, "start", &e, Exit::Storage));
        }
        let fact = format!(
            "{} is {} of {} bytes, and job {} was started with {} of {} bytes, which is gone",
            own.path.display(),
            own.version,
            own.bytes,
            job.address(),
            before.version,
            before.bytes
        );
        Err(Error::new(Exit::World, fact)
            .hint(format!("to go on with this one, remove {} and requeue the job", note.display())))
    }

    /// What ranks are started with. Looks whether the file at its path is still the same, and keeps this process's own program if not.
    ///
    /// # Errors
    /// [`Exit::Storage`]: it cannot be kept.
    pub fn current(&mut self) -> Result<String> {
        if !self.is_kept && !is_same(&self.path) {
            self.keep()?;
        }
        let path = if self.is_kept { &self.kept } else { &self.path };
        Ok(std::path::absolute(path).unwrap_or_else(|_| path.clone()).display().to_string())
    }

    fn keep(&mut self) -> Result<()> {
        let part = self.kept.with_extension("program.part");
        let refused = |e| Error::io(&part, "write", &e, Exit::Storage);
        let copy = || -> std::io::Result<()> {
            let mut to = OpenOptions::new().write(true).create(true).truncate(true).mode(0o755).open(&part)?;
            std::io::copy(&mut File::open(OWN)?, &mut to)?;
            to.sync_all()?;
            std::fs::rename(&part, &self.kept)
        };
        copy().map_err(refused)?;
        tracing::warn!(
            "{} was replaced or removed: the job goes on with the program that it was started with, kept as {}",
            self.path.display(),
            self.kept.display()
        );
        self.is_kept = true;
        Ok(())
    }
}

/// This process's program, wherever its file is now.
fn own_path() -> PathBuf {
    let path = std::env::current_exe().unwrap_or_else(|_| "herd".into());
    match path.to_string_lossy().strip_suffix(" (deleted)") {
        Some(before) => before.into(),
        None => path,
    }
}

/// Whether a path leads to this process's program.
fn is_same(path: &Path) -> bool {
    match (std::fs::metadata(OWN), std::fs::metadata(path)) {
        (Ok(own), Ok(there)) => (own.dev(), own.ino()) == (there.dev(), there.ino()),
        (_, Err(e)) => e.kind() != std::io::ErrorKind::NotFound,
        _ => true,
    }
}

fn noted(file: &Path, path: PathBuf) -> Result<Noted> {
    let (mut hash, mut bytes) = (Xxh3::new(), 0);
    let mut read = || -> std::io::Result<()> {
        let (mut file, mut buffer) = (File::open(file)?, vec![0; 1 << 20]);
        loop {
            match file.read(&mut buffer)? {
                0 => return Ok(()),
                n => {
                    hash.update(&buffer[..n]);
                    bytes += n as u64;
                }
            }
        }
    };
    read().map_err(|e| Error::io(&path, "read", &e, Exit::Storage))?;
    let commit = option_env!("HERD_COMMIT").map(|c| format!(" ({c})")).unwrap_or_default();
    let version = format!("herd {}{commit}", env!("CARGO_PKG_VERSION"));
    Ok(Noted { path, version, bytes, xxh3: format!("{:032x}", hash.digest128()) })
}
