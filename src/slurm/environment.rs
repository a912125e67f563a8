//! The job and step this process belongs to, from the SLURM_* variables (sbatch(1) and srun(1), OUTPUT ENVIRONMENT
//! VARIABLES).
//!
//! Nothing here decides ranks: those come from the MPI communicator alone. A value that Slurm cannot have written is an
//! error, since it means that somebody set the variable by hand.

use super::hostlist;
use crate::error::{Error, Exit, Result};
use std::str::FromStr;

/// A Slurm allocation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Job {
    /// SLURM_JOB_ID.
    pub id: u64,
    /// Times it was requeued so far (SLURM_RESTART_COUNT, absent before the first).
    pub restarts: u32,
    /// Its nodes, in Slurm's order (SLURM_JOB_NODELIST).
    pub nodes: Vec<String>,
    /// Tasks it was submitted with, where that was said (SLURM_NTASKS of the batch script; a step overwrites it).
    pub tasks: Option<usize>,
    /// Tasks on each of its nodes, where that was said (SLURM_NTASKS_PER_NODE).
    pub tasks_per_node: Option<usize>,
    /// For an element of a job array: the array's id and the element's number (SLURM_ARRAY_JOB_ID, SLURM_ARRAY_TASK_ID).
    pub array: Option<(u64, u64)>,
    /// The step that started this process; none in the batch script itself.
    pub step: Option<Step>,
}

/// What one `srun` started.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// SLURM_STEP_ID.
    pub id: u64,
    /// Tasks of the step (SLURM_STEP_NUM_TASKS).
    pub tasks: usize,
    /// Nodes of the step (SLURM_STEP_NODELIST).
    pub nodes: Vec<String>,
}

impl Job {
    /// The job of this process; `None` outside Slurm.
    ///
    /// Errors: [`Exit::World`] for a variable that is malformed, or missing where Slurm always sets it.
    pub fn current() -> Result<Option<Job>> {
        Job::read(|name| std::env::var(name).ok())
    }

    /// [`Job::current`] from any source of variables.
    pub fn read(var: impl Fn(&str) -> Option<String>) -> Result<Option<Job>> {
        let Some(id) = number(&var, "SLURM_JOB_ID")? else { return Ok(None) };
        let step = match number(&var, "SLURM_STEP_ID")? {
            None => None,
            Some(step) => Some(Step {
                id: step,
                tasks: needed(number(&var, "SLURM_STEP_NUM_TASKS")?, "SLURM_STEP_NUM_TASKS", "SLURM_STEP_ID")?,
                nodes: nodes(&var, "SLURM_STEP_NODELIST", "SLURM_STEP_ID")?,
            }),
        };
        Ok(Some(Job {
            id,
            restarts: number(&var, "SLURM_RESTART_COUNT")?.unwrap_or(0),
            nodes: nodes(&var, "SLURM_JOB_NODELIST", "SLURM_JOB_ID")?,
            tasks: number(&var, "SLURM_NTASKS")?,
            tasks_per_node: number(&var, "SLURM_NTASKS_PER_NODE")?,
            array: number(&var, "SLURM_ARRAY_JOB_ID")?.zip(number(&var, "SLURM_ARRAY_TASK_ID")?),
            step,
        }))
    }

    /// How `scontrol` and `scancel` are told this job alone. One element of an array has the array's own number as its
    /// job id, and a command that is given that number acts on all elements (scontrol(1), JOB ARRAYS).
    pub fn address(&self) -> String {
        match self.array {
            Some((array, element)) => format!("{array}_{element}"),
            None => self.id.to_string(),
        }
    }
}

fn number<T: FromStr>(var: &impl Fn(&str) -> Option<String>, name: &str) -> Result<Option<T>> {
    let Some(text) = var(name) else { return Ok(None) };
    let value = text.trim().parse().map_err(|_| {
        Error::new(Exit::World, format!("{name}={text} is not a whole number"))
            .hint("Slurm sets this variable; do not set it by hand")
    })?;
    Ok(Some(value))
}

fn nodes(var: &impl Fn(&str) -> Option<String>, name: &str, because: &str) -> Result<Vec<String>> {
    let list = needed(var(name), name, because)?;
    hostlist::expand(&list).map_err(|e| e.context(name))
}

fn needed<T>(value: Option<T>, name: &str, because: &str) -> Result<T> {
    value.ok_or_else(|| {
        Error::new(Exit::World, format!("{because} is set but {name} is not"))
            .hint("a part of Slurm's environment was cleared; unset all SLURM_* variables to run outside Slurm")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    type Pairs = &'static [(&'static str, &'static str)];

    fn read(pairs: Pairs) -> Result<Option<Job>> {
        Job::read(|k| pairs.iter().find(|(name, _)| *name == k).map(|(_, v)| v.to_string()))
    }

    #[test]
    fn no_job_outside_slurm() {
        assert_eq!(read(&[("PATH", "/bin"), ("SLURM_CONF", "/x")]).unwrap(), None);
    }

    /// As printed by `env` in a batch script of Slurm 22.05, and by a task of a step in it after one requeue.
    #[test]
    fn batch_script_and_step() {
        const BATCH: Pairs = &[("SLURM_JOB_ID", "2"), ("SLURM_JOB_NODELIST", "herd[1-2]"), ("SLURM_NTASKS", "4")];
        let job = read(BATCH).unwrap().unwrap();
        assert_eq!((job.id, job.restarts, job.tasks, job.step), (2, 0, Some(4), None));
        assert_eq!(job.nodes, ["herd1", "herd2"]);

        const STEP: Pairs = &[
            ("SLURM_JOB_ID", "2"),
            ("SLURM_JOB_NODELIST", "herd[1-2]"),
            ("SLURM_NTASKS", "1"),
            ("SLURM_RESTART_COUNT", "1"),
            ("SLURM_STEP_ID", "0"),
            ("SLURM_STEP_NUM_TASKS", "1"),
            ("SLURM_STEP_NODELIST", "herd1"),
        ];
        let job = read(STEP).unwrap().unwrap();
        assert_eq!(job.restarts, 1);
        assert_eq!(job.step.unwrap(), Step { id: 0, tasks: 1, nodes: vec!["herd1".into()] });
    }

    #[test]
    fn an_element_of_an_array_is_addressed_as_one() {
        const BASE: Pairs = &[("SLURM_JOB_ID", "8"), ("SLURM_JOB_NODELIST", "n1"), ("SLURM_NTASKS_PER_NODE", "2")];
        let job = read(BASE).unwrap().unwrap();
        assert_eq!((job.address().as_str(), job.tasks_per_node), ("8", Some(2)));
        const ELEMENT: Pairs = &[
            ("SLURM_JOB_ID", "8"),
            ("SLURM_JOB_NODELIST", "n1"),
            ("SLURM_ARRAY_JOB_ID", "8"),
            ("SLURM_ARRAY_TASK_ID", "3"),
        ];
        assert_eq!(read(ELEMENT).unwrap().unwrap().address(), "8_3");
    }

    #[test]
    fn a_value_slurm_cannot_have_written_is_an_error() {
        let cases: [(Pairs, &str); 4] = [
            (&[("SLURM_JOB_ID", "seven")], "SLURM_JOB_ID=seven is not a whole number"),
            (&[("SLURM_JOB_ID", "1")], "SLURM_JOB_NODELIST is not"),
            (&[("SLURM_JOB_ID", "1"), ("SLURM_JOB_NODELIST", "n[1-")], "a bracket is not closed"),
            (
                &[("SLURM_JOB_ID", "1"), ("SLURM_JOB_NODELIST", "n1"), ("SLURM_RESTART_COUNT", "-1")],
                "SLURM_RESTART_COUNT=-1",
            ),
        ];
        for (pairs, text) in cases {
            let e = read(pairs).unwrap_err();
            assert_eq!(e.exit, Exit::World);
            assert!(e.to_string().contains(text), "{e}");
        }
    }
}
