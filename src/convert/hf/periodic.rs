//! The thread that exports committed checkpoints while training goes on: `exports/step-NNNNNNNN` of the run directory, in
//! `save_pretrained`'s layout.
//!
//! An export has its name only when it is whole (`export` renames). At most one checkpoint waits; a newer one takes its place.

use crate::checkpoint::disk;
use crate::checkpoint::disk::directory;
use crate::convert::hf::{export, Dtype, ExportOptions};
use crate::convert::weights;
use crate::error::Result;
use crate::events::RunEvent;
use crate::threads::{self, lock};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{channel, Receiver, Sender};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Instant;

/// Largest safetensors file: Hugging Face's own default.
const SHARD: u64 = 5_000_000_000;

/// The thread that exports, and the checkpoints that wait for it.
pub struct Exporter {
    to: Option<Sender<()>>,
    waiting: Arc<Mutex<Queue>>,
    thread: Option<JoinHandle<()>>,
    from: Receiver<RunEvent>,
}

#[derive(Default)]
struct Queue {
    waiting: Option<(u64, PathBuf)>,
    under_way: Option<u64>,
    skipped: Vec<(u64, u64)>,
}

impl Exporter {
    /// Exports go to `directory`, in `dtype`; the newest `keep` (0: all) stay. Leftovers of exports that died are removed.
    pub fn start(directory: &Path, dtype: Dtype, keep: usize) -> Result<Exporter> {
        std::fs::create_dir_all(directory).map_err(disk::refused(directory, "create"))?;
        for name in names(directory)?.iter().filter(|n| n.starts_with("step-") && n.contains(".tmp-")) {
            disk::remove_dir(&directory.join(name))?;
        }
        let (to, wake) = channel();
        let (tell, from) = channel();
        let waiting = Arc::new(Mutex::new(Queue::default()));
        let (theirs, directory) = (waiting.clone(), directory.to_path_buf());
        let thread = threads::start("herd-export", "the export thread", move || {
            while wake.recv().is_ok() {
                let next = {
                    let mut q = lock(&theirs);
                    q.under_way = q.waiting.as_ref().map(|(step, _)| *step);
                    q.waiting.take()
                };
                let Some((step, path)) = next else { continue };
                let event = one(step, &path, &directory, dtype, keep);
                lock(&theirs).under_way = None;
                let _ = tell.send(event);
            }
        })?;
        Ok(Exporter { to: Some(to), waiting, thread: Some(thread), from })
    }

    /// Exports the checkpoint at `path` when its turn comes.
    pub fn committed(&self, step: u64, path: &Path) {
        let mut q = lock(&self.waiting);
        if let Some((old, _)) = q.waiting.replace((step, path.into())) {
            q.skipped.push((old, step));
        }
        drop(q);
        if let Some(to) = &self.to {
            let _ = to.send(());
        }
    }

    /// Whether retention may remove the checkpoint of `step`: it is not about to be read.
    pub fn may_remove(&self, step: u64) -> bool {
        let q = lock(&self.waiting);
        q.under_way != Some(step) && q.waiting.as_ref().is_none_or(|(s, _)| *s != step)
    }

    /// Whether nothing waits and nothing is under way.
    pub fn idle(&self) -> bool {
        let q = lock(&self.waiting);
        q.waiting.is_none() && q.under_way.is_none()
    }

    /// What happened since the last call.
    pub fn events(&self) -> Vec<RunEvent> {
        let mut q = lock(&self.waiting);
        let skipped = q.skipped.drain(..).map(|(step, newer)| RunEvent::ExportSkipped { step, newer });
        skipped.chain(self.from.try_iter()).collect()
    }

    /// Waits for what is under way and waiting, then stops.
    pub fn finish(mut self) -> Vec<RunEvent> {
        self.to = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
        self.events()
    }
}

fn one(step: u64, checkpoint: &Path, exports: &Path, dtype: Dtype, keep: usize) -> RunEvent {
    let began = Instant::now();
    let path = exports.join(directory(step));
    let work = || -> Result<u64> {
        // Saved again after a return to an older step.
        disk::remove_dir(&path)?;
        let weights = weights::open(checkpoint)?;
        let options = ExportOptions { dtype, shard_size: SHARD, tokenizer: None, meter: Default::default() };
        let done = export(&weights, &path, &options)?;
        retain(exports, keep)?;
        Ok(done.bytes)
    };
    match work() {
        Ok(bytes) => RunEvent::Export { step, path, bytes, seconds: began.elapsed().as_secs_f64() },
        Err(e) => RunEvent::ExportFailed { step, error: e.to_string() },
    }
}

/// Removes all but the newest `keep` exports; `config.json` goes first, so that what is half removed does not load.
fn retain(exports: &Path, keep: usize) -> Result<()> {
    let step = |n: &String| n.strip_prefix("step-")?.parse::<u64>().ok();
    let mut all: Vec<(u64, String)> = names(exports)?.into_iter().filter_map(|n| Some((step(&n)?, n))).collect();
    all.sort_unstable_by(|a, b| b.cmp(a));
    for (_, name) in all.iter().skip(if keep == 0 { usize::MAX } else { keep }) {
        let _ = std::fs::remove_file(exports.join(name).join("config.json"));
        disk::remove_dir(&exports.join(name))?;
    }
    Ok(())
}

fn names(directory: &Path) -> Result<Vec<String>> {
    let listed = std::fs::read_dir(directory).map_err(disk::refused(directory, "list"))?;
    Ok(listed.filter_map(|e| e.ok()?.file_name().into_string().ok()).collect())
}
