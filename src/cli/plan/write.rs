//! `herd plan --write`: the plan as a configuration and a batch script.
//!
//! The configuration is the text of the one that was planned with the changed keys in it, comments and order as they were.
//! What comes out is read again and held against the plan; where the text cannot be changed key by key (a list, an anchor, a
//! section over several lines in braces), the whole configuration is written instead, and said.

use super::PlanReport;
use crate::config::load;
use crate::config::{to_yaml, Config};
use crate::durable::write_atomic;
use crate::error::{Error, Exit, Result};
use crate::plan::estimate::DeviceKind;
use serde_json::Value;
use std::path::{Path, PathBuf};

/// A batch script of ours, which may be written over.
const MARK: &str = "# Written by `herd plan`";

/// What was written.
pub struct WrittenFiles {
    pub config: PathBuf,
    pub batch: PathBuf,
    pub comments_kept: bool,
}

/// Writes `to` and its batch script; `from` is the configuration that was read.
///
/// # Errors
/// [`Exit::Usage`] where a file of somebody else is in the way; [`Exit::Config`] where the result is no good configuration;
/// [`Exit::Storage`]. Nothing is half written.
pub fn write(from: &Path, to: &Path, report: &PlanReport) -> Result<WrittenFiles> {
    let batch = to.with_extension("sbatch");
    if batch == to {
        return Err(Error::new(Exit::Usage, format!("--write {} is a name for a batch script", to.display()))
            .hint("give the configuration's name, ending in .yaml"));
    }
    if to.exists() && !same_file(from, to) {
        return Err(in_the_way(to));
    }
    if batch.exists() && !std::fs::read_to_string(&batch).is_ok_and(|text| text.contains(MARK)) {
        return Err(in_the_way(&batch));
    }
    let target = &report.plan.config;
    let text = std::fs::read_to_string(from).map_err(|e| Error::io(from, "read", &e, Exit::Config))?;
    let before = load::load(from, &[])?;
    let kept = changed(&text, &before, target).filter(|text| reads_as(text, target));
    let comments_kept = kept.is_some();
    let text = match kept {
        Some(text) => text,
        None => to_yaml(target)?,
    };
    let place = to.display().to_string();
    let again = load::from_text(&text, place, &[])?.finish()?;
    report.question.checked(again)?;
    let script = batch_script(to, report);
    write_atomic(&batch, script.as_bytes())?;
    write_atomic(to, text.as_bytes())?;
    Ok(WrittenFiles { config: to.to_path_buf(), batch, comments_kept })
}

fn same_file(a: &Path, b: &Path) -> bool {
    matches!((a.canonicalize(), b.canonicalize()), (Ok(a), Ok(b)) if a == b)
}

fn in_the_way(path: &Path) -> Error {
    Error::new(Exit::Usage, format!("{} exists and is not overwritten", path.display()))
        .hint("another name, or move it away")
}

fn reads_as(text: &str, target: &Config) -> bool {
    load::from_text(text, String::new(), &[]).is_ok_and(|draft| draft.problems.is_empty() && draft.config == *target)
}

/// `text`, which reads as `before`, with the keys in which `target` differs; None where some key cannot be changed alone.
pub fn changed(text: &str, before: &Config, target: &Config) -> Option<String> {
    let (before, target) = (serde_json::to_value(before).ok()?, serde_json::to_value(target).ok()?);
    let mut out = text.to_string();
    for (section, values) in target.as_object()? {
        let was = &before[section];
        if was == values {
            continue;
        }
        for (key, value) in values.as_object()? {
            if was[key] != *value {
                out = with_key(&out, section, key, &scalar(value)?)?;
            }
        }
    }
    Some(out)
}

fn scalar(value: &Value) -> Option<String> {
    match value {
        Value::Bool(_) | Value::Number(_) => Some(value.to_string()),
        Value::String(word) if word.chars().all(|c| c.is_ascii_alphanumeric() || c == '_') => Some(word.clone()),
        _ => None,
    }
}

/// `section.key` set to `value` in block style, or in braces on one line.
fn with_key(text: &str, section: &str, key: &str, value: &str) -> Option<String> {
    let mut lines: Vec<String> = text.lines().map(str::to_string).collect();
    let Some(at) = lines.iter().position(|l| l.strip_prefix(section).is_some_and(|rest| rest.starts_with(':'))) else {
        lines.extend([String::new(), format!("{section}:"), format!("  {key}: {value}")]);
        return Some(lines.join("\n") + "\n");
    };
    let (after, comment) = split_comment(&lines[at][section.len() + 1..]);
    if !after.trim().is_empty() {
        let inside = in_braces(after.trim(), key, value)?;
        lines[at] = format!("{section}: {inside}{comment}");
        return Some(lines.join("\n") + "\n");
    }
    let inside = |l: &String| l.starts_with([' ', '\t']) || l.trim().is_empty() || l.starts_with('#');
    let end = lines[at + 1..].iter().position(|l| !inside(l)).map_or(lines.len(), |n| at + 1 + n);
    let body = at + 1..end;
    let is_key = |l: &str| !l.trim_start().is_empty() && !l.trim_start().starts_with('#');
    let indent = lines[body.clone()].iter().find(|l| is_key(l)).map_or(2, |l| l.len() - l.trim_start().len());
    let found = body.clone().find(|&i| {
        let l = &lines[i];
        l.len() - l.trim_start().len() == indent && l.trim_start().strip_prefix(key).is_some_and(|r| r.starts_with(':'))
    });
    match found {
        Some(i) => {
            let (old, comment) = split_comment(&lines[i][indent + key.len() + 1..]);
            // A value of its own lines, or an anchor, is no scalar.
            if old.trim().is_empty() || old.trim().starts_with(['&', '*', '|', '>', '[', '{', '"', '\'']) {
                return None;
            }
            lines[i] = format!("{:indent$}{key}: {value}{comment}", "");
        }
        None => {
            let last = body.rev().find(|&i| is_key(&lines[i])).unwrap_or(at);
            lines.insert(last + 1, format!("{:indent$}{key}: {value}", ""));
        }
    }
    Some(lines.join("\n") + "\n")
}

/// A value and the blanks and comment after it.
fn split_comment(rest: &str) -> (&str, &str) {
    let at = rest.find(" #").unwrap_or(rest.len());
    let at = rest[..at].trim_end().len();
    rest.split_at(at)
}

/// `{a: 1, b: 2}` with `key` set, of scalars alone.
fn in_braces(text: &str, key: &str, value: &str) -> Option<String> {
    let body = text.strip_prefix('{')?.strip_suffix('}')?;
    if body.contains(['{', '}', '[', ']', '"', '\'']) {
        return None;
    }
    let mut parts: Vec<String> = body.split(',').map(|p| p.trim().to_string()).filter(|p| !p.is_empty()).collect();
    let new = format!("{key}: {value}");
    match parts.iter_mut().find(|p| p.split(':').next().is_some_and(|k| k.trim() == key)) {
        Some(part) => *part = new,
        None => parts.push(new),
    }
    Some(format!("{{{}}}", parts.join(", ")))
}

/// What `sbatch` is given: the nodes of the plan and the spares that pay.
fn batch_script(config: &Path, r: &PlanReport) -> String {
    let (a, spares) = (r.question.allocation, r.estimate.faults.spares);
    let mut lines = vec![
        "#!/bin/bash".to_string(),
        format!("{MARK} for {}; arguments go to `herd launch` (docs/recovery.md).", config.display()),
        format!("#SBATCH --job-name={}", word(&r.plan.config.name)),
        format!("#SBATCH --nodes={:<18} # {} for the plan, {spares} spare", a.nodes + spares, a.nodes),
        format!("#SBATCH --ntasks-per-node={}", a.per_node),
    ];
    match r.question.hardware.device {
        DeviceKind::Cuda => lines.push(format!("#SBATCH --gpus-per-node={}", a.per_node)),
        DeviceKind::Cpu => lines.push(format!("#SBATCH --cpus-per-task={}", r.plan.threads)),
    }
    lines.extend(
        [
            "#SBATCH --exclusive",
            "#SBATCH --time=24:00:00             # as your partition allows",
            "#SBATCH --output=%x-%j.log",
            "#SBATCH --open-mode=append          # a requeued job goes on in its log",
            "#SBATCH --requeue                   # the job may go back into the queue: time limit, preemption, no spare left",
            "#SBATCH --no-kill                   # the loss of another node does not end the job",
            "#SBATCH --signal=B:USR1@600         # a warning ten minutes before the time limit: time for a checkpoint",
            "",
            "if command -v module >/dev/null; then module load herd; else echo \"no module command here: herd is taken from PATH\"; fi",
            "",
        ]
        .map(String::from),
    );
    lines.push(format!("exec herd launch {} \"$@\"", quoted(&config.display().to_string())));
    lines.join("\n") + "\n"
}

/// A job's name without what a shell or Slurm would take apart.
pub fn word(name: &str) -> String {
    name.chars().map(|c| if c.is_ascii_alphanumeric() || "-_.".contains(c) { c } else { '-' }).collect()
}

/// For a POSIX shell.
pub fn quoted(text: &str) -> String {
    match !text.is_empty() && text.chars().all(|c| c.is_ascii_alphanumeric() || "-_./+=:@%".contains(c)) {
        true => text.to_string(),
        false => format!("'{}'", text.replace('\'', "'\\''")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_change_where_they_stand_and_comments_stay() {
        let text = "# top\nbatch: {global: 8, micro: 2} # a batch\n\n# the axes\nparallel:\n  tensor: 8   # a node\n  # and\n  data: 4\n\nlog:\n  every: 1\n";
        let one = with_key(text, "parallel", "tensor", "4").unwrap();
        assert_eq!(one, text.replace("tensor: 8   # a node", "tensor: 4   # a node"));
        let two = with_key(text, "batch", "micro", "1").unwrap();
        assert_eq!(two, text.replace("micro: 2}", "micro: 1}"));
        let three = with_key(text, "parallel", "zero", "2").unwrap();
        assert_eq!(three, text.replace("  data: 4\n", "  data: 4\n  zero: 2\n"));
        let four = with_key(text, "train", "recompute", "full").unwrap();
        assert!(four.starts_with(text) && four.ends_with("\ntrain:\n  recompute: full\n"), "{four}");
    }

    #[test]
    fn what_is_no_scalar_is_left_to_the_whole_configuration() {
        for text in
            ["a: {b: [1],\n  c: 2}\n", "a:\n  b: &x 1\n", "a:\n  b:\n    - 1\n", "a: *x\n", "a:\n  b: |\n    t\n"]
        {
            assert_eq!(with_key(text, "a", "b", "1"), None, "{text}");
        }
        assert_eq!(scalar(&serde_json::json!([1])), None);
        assert_eq!(scalar(&serde_json::json!("1f1b")).as_deref(), Some("1f1b"));
    }

    #[test]
    fn names_and_paths_are_safe_in_a_script() {
        assert_eq!(word("my run; rm"), "my-run--rm");
        assert_eq!([quoted("a/b.yaml"), quoted("it's a.yaml")], ["a/b.yaml", "'it'\\''s a.yaml'"]);
    }
}
