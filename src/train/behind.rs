//! What goes on behind a committed checkpoint, on rank 0 and in threads of its own: the copy in the object store, the export
//! for Hugging Face. Training never waits for either, and their failures are events.

use super::report::Report;
use crate::checkpoint::hf::{Dtype, ExportEvent, Exporter};
use crate::checkpoint::store::{Event, Uploader};
use crate::config::{CheckpointSection, Precision};
use crate::error::Result;
use crate::plan::Plan;
use crate::wire::World;
use serde_json::json;
use std::path::Path;
use std::time::Duration;

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
            every => Some((Exporter::start(&run.join("exports"), dtype, *export_keep)?, *every)),
        };
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
            uploader.events().iter().try_for_each(|e| stored(e, report))?;
        }
        match &self.exporter {
            Some((exporter, _)) => exporter.events().iter().try_for_each(|e| exported(e, report)),
            None => Ok(()),
        }
    }

    /// The run ends. `done`: all its steps are; then uploads get the time that the configuration gives them, else (the job
    /// goes on later) only a moment, and the next start goes on.
    pub fn finish(self, done: bool, report: &mut Report) -> Result<()> {
        if let Some((exporter, _)) = self.exporter {
            exporter.finish().iter().try_for_each(|e| exported(e, report))?;
        }
        match self.uploader {
            Some((uploader, drain)) => {
                let limit = if done { drain } else { drain.min(Duration::from_secs(2)) };
                uploader.finish(limit).iter().try_for_each(|e| stored(e, report))
            }
            None => Ok(()),
        }
    }
}

/// One event of the object store tier, in the log and for the person who watches.
pub fn stored(event: &Event, report: &mut Report) -> Result<()> {
    let (kind, fields) = event.parts();
    report.event(&kind, fields)?;
    report.note(&if event.is_warning() { format!("WARNING: {event}") } else { event.to_string() });
    Ok(())
}

fn exported(event: &ExportEvent, report: &mut Report) -> Result<()> {
    match event {
        ExportEvent::Exported { step, path, bytes, seconds } => {
            report.note(&format!("exported {}, {:.1} MB in {seconds:.2} s", path.display(), *bytes as f64 / 1e6));
            report.event("export", json!({ "step": step, "path": path, "bytes": bytes, "seconds": seconds }))
        }
        ExportEvent::Failed { step, error } => {
            report.note(&format!("WARNING: the export of step {step} failed, training goes on: {error}"));
            report.event("export_failed", json!({ "step": step, "error": error }))
        }
        ExportEvent::Skipped { step, newer } => report.event("export_skipped", json!({ "step": step, "newer": newer })),
    }
}
