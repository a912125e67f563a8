//! A checkpoint in the store, read in full and compared with its manifest. Nothing is written here.

use crate::checkpoint::directory;
use crate::checkpoint::FileReport;
use crate::error::Result;
use crate::progress::Meter;
use crate::store::remote::{digest, Remote};

/// What is wrong with each file of a step, if anything; `meter` counts the bytes read.
///
/// Errors: [`Exit::Checkpoint`](crate::error::Exit::Checkpoint) for a manifest that is absent or damaged,
/// [`Exit::Store`](crate::error::Exit::Store) when the store does not answer.
pub fn verify(remote: &Remote, step: u64, meter: &Meter) -> Result<Vec<FileReport>> {
    let (bytes, m) = remote.parsed(step)?;
    meter.begin(format!("verify {}", directory(step)), m.files.iter().map(|f| f.size).sum::<u64>());
    let report = |file| -> Result<FileReport> {
        let problem = remote.check(step, &digest(&bytes), &m, file, meter)?;
        Ok(FileReport { name: file.name.clone(), bytes: file.size, problem })
    };
    m.files.iter().map(report).collect()
}
