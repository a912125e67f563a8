//! `herd report`: a run, or several, as one page of HTML.

use crate::durable::write_atomic;
use crate::error::{Error, Exit, Result};
use crate::report::page::page;
use crate::report::serve::{serve, Views};
use crate::run_dir::RunDir;
use crate::text::binary;
use jiff::Timestamp;
use std::net::SocketAddr;
use std::path::PathBuf;

/// Write one HTML file that shows how runs went: curves, faults, nodes, configuration.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  herd report runs/llama3                          # writes runs/llama3/report.html
  herd report runs/a runs/b runs/c -o compare.html # several, overlaid
  herd report runs/llama3 --watch                  # the live page; Ctrl-C ends it

The file needs no network and no other file. The live page listens on this host alone: from elsewhere,
`ssh -L 8571:127.0.0.1:8571 LOGIN_NODE`. Its address holds a token and is also in RUN/report.url, for you only.")]
pub struct Args {
    /// Run directories
    #[arg(required = true, value_name = "RUN")]
    runs: Vec<PathBuf>,
    /// The file to write [default: report.html in the run directory; needed with several runs]
    #[arg(short, long, value_name = "FILE", conflicts_with = "watch")]
    output: Option<PathBuf>,
    /// Serve the page while the runs go on
    #[arg(long)]
    watch: bool,
    /// Where the live page listens; port 0 is any that is free
    #[arg(long, value_name = "ADDRESS:PORT", default_value = "127.0.0.1:8571", requires = "watch")]
    listen: SocketAddr,
}

pub fn run(args: Args) -> Result<()> {
    let mut views = Views::open(&args.runs)?;
    if args.watch {
        if !args.listen.ip().is_loopback() {
            eprintln!(
                "WARNING: {} can be reached from other hosts, and HTTP is not encrypted: only the token keeps others out \
                 (hint: listen on 127.0.0.1 and use ssh -L)",
                args.listen
            );
        }
        let file = RunDir::new(&args.runs[0]).report_url();
        return serve(views, args.listen, &file, &|url| super::print(&format!("{url}\n")));
    }
    let output = match (args.output, &args.runs[..]) {
        (Some(file), _) => file,
        (None, [run]) => RunDir::new(run).report(),
        (None, many) => {
            let fact = format!("{} runs have no common place for a page", many.len());
            return Err(Error::new(Exit::Usage, fact).hint("name a file: -o compare.html"));
        }
    };
    let data = views.look(Timestamp::now());
    if let Some(problem) = data["problems"].as_array().into_iter().flatten().find_map(|p| p.as_str()) {
        return Err(Error::new(Exit::Storage, problem));
    }
    for run in data["runs"].as_array().into_iter().flatten() {
        for note in run["notes"].as_array().into_iter().flatten().filter_map(|n| n.as_str()) {
            eprintln!("{}: {note}", run["path"].as_str().unwrap_or_default());
        }
    }
    let text = page(&data, false);
    write_atomic(&output, text.as_bytes())?;
    super::print(&format!("{}: {}\n", output.display(), binary(text.len() as u64)))
}
