//! What the arguments of the checkpoint commands name: a step directory, a run, a place in an object store.

use crate::checkpoint::{list, Checkpoint};
use crate::error::{Error, Exit, Result};
use crate::run_dir::RunDir;
use crate::store::{place, Remote};
use std::path::{Path, PathBuf};

/// Where checkpoints are looked for.
pub enum Place {
    Step(PathBuf),
    /// A `checkpoints` directory.
    Run(PathBuf),
    /// A URL, and the step if it names one.
    Store(Remote, Option<u64>),
}

/// What `text` names. Errors: a directory that is not there, a URL that is none.
pub fn place(text: &str) -> Result<Place> {
    if place::is_url(text) {
        let (url, step) = split_step(text);
        return Ok(Place::Store(Remote::open(url)?, step));
    }
    let path = Path::new(text);
    match is_step(path) {
        true => Ok(Place::Step(path.into())),
        false => Ok(Place::Run(checkpoints_of(path)?)),
    }
}

/// `URL/step-NNNNNNNN` names one step of `URL`.
fn split_step(url: &str) -> (&str, Option<u64>) {
    let trimmed = url.trim_end_matches('/');
    match trimmed.rsplit_once("/step-").and_then(|(head, step)| Some((head, step.parse().ok()?))) {
        Some((head, step)) => (head, Some(step)),
        None => (trimmed, None),
    }
}

/// The steps that `step`, or all, of a store mean, newest first. Errors: none at all there.
pub fn steps_of(remote: &Remote, step: Option<u64>) -> Result<Vec<u64>> {
    let all = remote.steps()?;
    let found: Vec<u64> = all.iter().copied().filter(|s| step.is_none_or(|step| *s == step)).collect();
    match (found.is_empty(), step) {
        (false, _) => Ok(found),
        (true, Some(step)) => Err(Error::new(Exit::Checkpoint, format!("{} holds no step {step}", remote.url()))
            .hint(format!("it holds {}", if all.is_empty() { "none".into() } else { format!("{all:?}") }))),
        (true, None) => Err(Error::new(Exit::Checkpoint, format!("{} holds no checkpoint", remote.url()))
            .hint("check the URL: it is the place whose step-NNNNNNNN lie below it")),
    }
}

pub fn is_step(path: &Path) -> bool {
    let named = path.file_name().is_some_and(|n| n.to_string_lossy().starts_with("step-"));
    named || path.join("manifest.json").exists()
}

/// The checkpoint at a step directory, or the newest of a run that opens.
pub fn one(path: &Path) -> Result<Checkpoint> {
    if is_step(path) {
        return Checkpoint::open(path);
    }
    let newest = list(&checkpoints_of(path)?)?.into_iter().find_map(|(_, c)| c.ok());
    newest.ok_or_else(|| Error::new(Exit::Checkpoint, format!("{} holds no valid checkpoint", path.display())))
}

/// `RUN/checkpoints`, or the path itself if it is that directory.
pub fn checkpoints_of(run: &Path) -> Result<PathBuf> {
    if !run.is_dir() {
        return Err(Error::new(Exit::Checkpoint, format!("there is no directory {}", run.display()))
            .hint("give a run directory, or its `checkpoints`"));
    }
    let inside = RunDir::new(run).checkpoints();
    Ok(if inside.is_dir() { inside } else { run.to_path_buf() })
}

/// JSON for a program on stdout, or lines for a person.
pub fn say(json: bool, value: serde_json::Value, lines: &str) -> Result<()> {
    crate::cli::print(&if json { format!("{value:#}\n") } else { lines.to_string() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_may_name_a_step() {
        assert_eq!(split_step("s3://b/x/step-00000020/"), ("s3://b/x", Some(20)));
        assert_eq!(split_step("s3://b/x/"), ("s3://b/x", None));
        assert_eq!(split_step("s3://b/step-x"), ("s3://b/step-x", None));
    }
}
