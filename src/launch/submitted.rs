//! What was submitted is what runs. The configuration as it was resolved at a job's first start lies in the run directory, and
//! every later start of that job takes it from there: after a fault, a requeue, or the loss of the supervisor's node. A file that
//! was edited meanwhile changes nothing, and is said. `herd config change` is the way to change a key for the next start.

use crate::config::{self, Config};
use crate::durable::write_atomic;
use crate::error::{Error, Exit, Result};
use crate::events::{Events, RunEvent};
use crate::run_dir::RunDir;
use crate::slurm::Job;
use serde_json::Value;
use std::path::{Path, PathBuf};

/// Sections and keys that the supervisor itself goes by: it has read them at its start.
const SUPERVISOR_S: &[&str] = &["name", "run_dir", "parallel", "launch", "alerts"];

/// What the starts of one job go by.
#[derive(Debug)]
pub struct Submitted {
    /// As it was resolved at the job's first start, with what `herd config change` has changed since.
    pub config: Config,
    /// The file that the ranks read.
    pub path: PathBuf,
    /// What differs between that and the file that was given, a line each.
    pub changed: Vec<String>,
}

/// The configuration of `job`: what an earlier start of it has kept, else what `file` and `sets` say, which is kept.
///
/// # Errors
/// Those of [`config::load`]; [`Exit::Storage`].
pub fn settle(file: &Path, sets: &[String], job: &Job) -> Result<Submitted> {
    let config = config::load(file, sets)?;
    let path = RunDir::new(&config.run_dir).job_config(&job.address());
    if path.exists() {
        let kept = config::load(&path, &[])?;
        let changed = differences(&kept, &config);
        return Ok(Submitted { config: kept, path, changed });
    }
    if job.restarts > 0 {
        tracing::warn!(
            "job {} was started before, and {} has nothing of it: if run_dir was changed in {} meanwhile, this is another run",
            job.address(),
            config.run_dir.display(),
            file.display()
        );
    }
    keep(&config, &path)?;
    Ok(Submitted { config, path, changed: Vec::new() })
}

fn keep(config: &Config, path: &Path) -> Result<()> {
    let text = config::to_yaml(config)?;
    if let Some(dir) = path.parent() {
        std::fs::create_dir_all(dir).map_err(|e| Error::io(dir, "create", &e, Exit::Storage))?;
    }
    let head = "# What this job's ranks are started with. `herd config change RUN KEY=VALUE` changes a key for the next start.\n";
    write_atomic(path, format!("{head}{text}").as_bytes())
}

/// Changes keys of the newest job of a run, from its next start on; what changed, a line each.
///
/// # Errors
/// [`Exit::Usage`]: a key that the supervisor goes by, or a run that no `herd launch` has started; [`Exit::Config`]: a value that
/// is wrong; [`Exit::Storage`].
pub fn change(run_dir: &Path, sets: &[String]) -> Result<Vec<String>> {
    let path = newest(run_dir)?;
    let before = config::load(&path, &[])?;
    let after = config::load(&path, sets)?;
    let changed = differences(&before, &after);
    let held = |line: &&String| {
        let section = line.split([':', '.']).next().unwrap_or_default();
        SUPERVISOR_S.contains(&section)
    };
    if let Some(line) = changed.iter().find(held) {
        return Err(Error::new(Exit::Usage, format!("{line}: the job's supervisor goes by this since its start"))
            .hint(
            "cancel the job, change the configuration, and submit it again: the run goes on from its newest checkpoint",
        ));
    }
    if !changed.is_empty() {
        keep(&after, &path)?;
        Events::open(run_dir)?.write(&RunEvent::ConfigChanged { keys: changed.clone(), file: path })?;
    }
    Ok(changed)
}

fn newest(run_dir: &Path) -> Result<PathBuf> {
    let dir = RunDir::new(run_dir).launch();
    let entries = std::fs::read_dir(&dir).into_iter().flatten().flatten();
    let name = |e: &std::fs::DirEntry| e.file_name().to_string_lossy().into_owned();
    let ours = entries.filter(|e| name(e).starts_with("job-") && name(e).ends_with(".yaml"));
    let newest = ours.max_by_key(|e| e.metadata().and_then(|m| m.modified()).ok());
    newest.map(|e| e.path()).ok_or_else(|| {
        Error::new(Exit::Usage, format!("no job of `herd launch` has kept its configuration in {}", dir.display()))
            .hint("give the run's directory; without a supervisor, edit the file that `herd train` is given")
    })
}

/// Keys whose values differ, `a.b: 1 → 2`, in the order of the configuration.
fn differences(before: &Config, after: &Config) -> Vec<String> {
    let value = |c: &Config| serde_json::to_value(c).unwrap_or(Value::Null);
    let mut found = Vec::new();
    compare("", &value(before), &value(after), &mut found);
    found
}

fn compare(key: &str, a: &Value, b: &Value, found: &mut Vec<String>) {
    let under = |name: &str| if key.is_empty() { name.to_string() } else { format!("{key}.{name}") };
    match (a, b) {
        (Value::Object(x), Value::Object(y)) => {
            let names = x.keys().chain(y.keys().filter(|k| !x.contains_key(*k)));
            let part = |m: &serde_json::Map<String, Value>, k: &str| m.get(k).cloned().unwrap_or(Value::Null);
            names.for_each(|k| compare(&under(k), &part(x, k), &part(y, k), found));
        }
        _ if a != b => found.push(format!("{key}: {a} → {b}")),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(run: &Path) -> String {
        let text = crate::config::SAMPLE.replace("runs/t", &run.display().to_string());
        text.replace("data/a", "data/a$$b, weight: 0.1") + "optim: {lr: 3.3e-4}\n"
    }

    fn job(id: &str) -> Job {
        let told = Job::read(|k| match k {
            "SLURM_JOB_ID" => Some(id.into()),
            "SLURM_JOB_NODELIST" => Some("n1".into()),
            _ => None,
        });
        told.job.unwrap()
    }

    #[test]
    fn an_edited_file_changes_no_start_of_the_job_and_is_said() {
        let dir = tempfile::tempdir().unwrap();
        let (file, run) = (dir.path().join("c.yaml"), dir.path().join("run"));
        let text = sample(&run);
        std::fs::write(&file, &text).unwrap();
        let sets = ["train.steps=500".to_string()];
        let first = settle(&file, &sets, &job("7")).unwrap();
        assert!(first.changed.is_empty() && first.config.train.steps == 500);
        let again = settle(&file, &sets, &job("7")).unwrap();
        assert_eq!((again.changed.len(), &again.config), (0, &first.config), "what was written is what is read");
        assert_eq!(config::load(&again.path, &[]).unwrap(), first.config, "and what the ranks read");

        std::fs::write(&file, text.replace("3.3e-4", "1e-3")).unwrap();
        let edited = settle(&file, &sets, &job("7")).unwrap();
        assert_eq!(edited.changed, ["optim.lr: 0.00033 → 0.001"]);
        assert_eq!(edited.config, first.config);
        assert_eq!(settle(&file, &sets, &job("8")).unwrap().config.optim.lr, 1e-3, "another job begins with the file");
    }

    #[test]
    fn a_key_is_changed_for_the_next_start() {
        let dir = tempfile::tempdir().unwrap();
        let (file, run) = (dir.path().join("c.yaml"), dir.path().join("run"));
        assert_eq!(change(&run, &[]).unwrap_err().exit, Exit::Usage);
        std::fs::write(&file, sample(&run)).unwrap();
        settle(&file, &[], &job("7")).unwrap();
        let set = |s: &str| change(&run, &[s.to_string()]);
        assert_eq!(set("optim.lr=1e-4").unwrap(), ["optim.lr: 0.00033 → 0.0001"]);
        assert!(set("optim.lr=1e-4").unwrap().is_empty());
        assert_eq!(settle(&file, &[], &job("7")).unwrap().config.optim.lr, 1e-4);
        for (wrong, exit) in
            [("parallel.data=2", Exit::Usage), ("optim.lr=much", Exit::Config), ("nosuch.key=1", Exit::Config)]
        {
            assert_eq!(set(wrong).unwrap_err().exit, exit, "{wrong}");
        }
        assert_eq!(settle(&file, &[], &job("7")).unwrap().config.optim.lr, 1e-4, "what is wrong changes nothing");
        assert!(std::fs::read_to_string(run.join("events.jsonl")).unwrap().contains("config_changed"));
    }
}
