//! What goes on behind a committed checkpoint, on rank 0 and in threads of its own: the copy in the object store, the export
//! for Hugging Face. Training never waits for either, and their failures are events.

use super::report::Report;
use crate::checkpoint;
use crate::config::{CheckpointSection, Precision, StoreSection};
use crate::convert::hf::{Dtype, Exporter};
use crate::error::Result;
use crate::events::RunEvent;
use crate::liveness::Progress;
use crate::plan::Plan;
use crate::run_dir::RunDir;
use crate::store::{fetch_newer, Uploader};
use crate::world::World;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// What a run that is stopped gives its uploads.
const MOMENT: Duration = Duration::from_secs(2);
/// Between two looks at whether they are done.
const LOOK: Duration = Duration::from_millis(50);

#[derive(Default)]
pub struct Behind {
    uploader: Option<(Uploader, Duration)>,
    exporter: Option<(Exporter, u64)>,
}

impl Behind {
    /// Starts what the configuration asks for. On the other ranks there is nothing to do.
    pub fn start(plan: &Plan, world: &World) -> Result<Behind> {
        if world.rank() > 0 {
            return Ok(Behind::default());
        }
        let CheckpointSection { store, export_every, export_keep, .. } = &plan.config.checkpoint;
        let run = &plan.config.run_dir;
        let uploader = match store {
            Some(store) => Some((Uploader::start(store, run)?, Duration::from_secs(store.drain_s))),
            None => None,
        };
        let dtype = match plan.config.train.precision {
            Precision::Bf16 => Dtype::Bf16,
            Precision::Fp32 => Dtype::Fp32,
        };
        let exporter = match export_every {
            0 => None,
            every => Some((Exporter::start(&RunDir::new(run).exports(), dtype, *export_keep)?, *every)),
        };
        if let Some((exporter, every)) = &exporter {
            if let Some((step, path)) = not_exported(run, *every)? {
                exporter.committed(step, &path);
            }
        }
        Ok(Behind { uploader, exporter })
    }

    /// The checkpoint of `step` is committed at `path`; `last` is the run's last.
    pub fn committed(&self, step: u64, path: &Path, last: bool) {
        if let Some((uploader, _)) = &self.uploader {
            uploader.committed(step, path, last);
        }
        if let Some((exporter, _)) = self.exporter.as_ref().filter(|(_, every)| step.is_multiple_of(*every)) {
            exporter.committed(step, path);
        }
    }

    /// Whether retention may remove the checkpoint of `step` from the run directory.
    pub fn may_remove(&self, step: u64) -> bool {
        self.uploader.as_ref().is_none_or(|(u, _)| u.may_remove(step))
            && self.exporter.as_ref().is_none_or(|(e, _)| e.may_remove(step))
    }

    /// Writes down what happened since the last call.
    pub fn report(&self, report: &mut Report) -> Result<()> {
        if let Some((uploader, _)) = &self.uploader {
            uploader.events().iter().try_for_each(|e| report.tell(e))?;
        }
        match &self.exporter {
            Some((exporter, _)) => exporter.events().iter().try_for_each(|e| report.tell(e)),
            None => Ok(()),
        }
    }

    /// The run ends. `done`: all its steps are; then uploads get the time that the configuration gives them, else (the job
    /// goes on later) only a moment, and the next start goes on. Collective over all ranks.
    pub fn finish(self, done: bool, report: &mut Report, world: &World, progress: &Progress) -> Result<()> {
        let began = Instant::now();
        let limit = |drain: Duration| if done { drain } else { drain.min(MOMENT) };
        wait_together(world, progress, || {
            let exported = self.exporter.as_ref().is_none_or(|(e, _)| e.idle() || (!done && began.elapsed() >= MOMENT));
            let uploaded = self.uploader.as_ref().is_none_or(|(u, d)| u.idle() || began.elapsed() >= limit(*d));
            exported && uploaded
        })?;
        match self.exporter {
            Some((exporter, _)) if exporter.idle() => {
                exporter.finish().iter().try_for_each(|e| report.tell(e))?;
            }
            // Its thread goes with the process; the next start begins again.
            Some((exporter, _)) => {
                exporter.events().iter().try_for_each(|e| report.tell(e))?;
                report.tell(&RunEvent::ExportPending {})?;
            }
            None => {}
        }
        match self.uploader {
            Some((uploader, _)) => uploader.finish(Duration::ZERO).iter().try_for_each(|e| report.tell(e)),
            None => Ok(()),
        }
    }
}

/// The newest checkpoint that is due for an export, if the run died before it was made.
fn not_exported(run: &Path, every: u64) -> Result<Option<(u64, PathBuf)>> {
    let all = checkpoint::list(&RunDir::new(run).checkpoints())?.into_iter();
    let newest =
        all.filter_map(|(path, c)| Some((c.ok()?.meta().step, path))).find(|(step, _)| step.is_multiple_of(every));
    let exported = |path: &Path| path.file_name().is_some_and(|name| RunDir::new(run).exports().join(name).exists());
    Ok(newest.filter(|(step, path)| *step > 0 && !exported(path)))
}

/// Waits on all ranks until `done` on rank 0, with signs of life: the watch over the ranks must not take it for a standstill.
fn wait_together(world: &World, progress: &Progress, mut done: impl FnMut() -> bool) -> Result<()> {
    loop {
        let over = world.rank() == 0 && done();
        progress.tick();
        if world.broadcast_bytes(vec![over.into()], 0)? == [1] {
            return Ok(());
        }
        if world.rank() == 0 {
            std::thread::sleep(LOOK);
        }
    }
}

/// Takes what the object store has newer than step `than` into the run directory, on rank 0 while the others wait. Whether
/// there was something. Collective over all ranks.
pub fn fetch(
    section: &StoreSection, plan: &Plan, world: &World, progress: &Progress, than: Option<u64>,
    events: &mut Vec<RunEvent>,
) -> Result<bool> {
    let checkpoints = RunDir::new(&plan.config.run_dir).checkpoints();
    let fetched = std::thread::scope(|scope| {
        let work = (world.rank() == 0).then(|| {
            scope.spawn(|| {
                fetch_newer(section, &checkpoints, than, &mut |event| {
                    tracing::info!("{event}");
                    events.push(event.clone());
                })
            })
        });
        wait_together(world, progress, || work.as_ref().is_none_or(|w| w.is_finished()))?;
        // A panic ends the process before anybody could join.
        world.agree(work.and_then(|w| w.join().ok()).unwrap_or(Ok(None)))
    })?;
    Ok(world.broadcast_bytes(vec![fetched.is_some().into()], 0)? == [1])
}
