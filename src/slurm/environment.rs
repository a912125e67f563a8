//! The job and step this process belongs to, from the SLURM_* variables (sbatch(1) and srun(1), OUTPUT ENVIRONMENT
//! VARIABLES).
//!
//! Nothing here decides ranks: those come from the MPI communicator alone. What is set differs between versions of Slurm, so
//! a variable of an unknown form costs what it is for, with a line that says so, and never the job.

use super::hostlist;
use crate::world::is_step;
use std::str::FromStr;

/// A Slurm allocation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Job {
    /// SLURM_JOB_ID.
    pub id: u64,
    /// Times it was requeued so far (SLURM_RESTART_COUNT, absent before the first).
    pub restarts: u32,
    /// Its nodes, in Slurm's order (SLURM_JOB_NODELIST); empty where that was not understood.
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

/// What Slurm has told a process.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Told {
    /// The job of this process; `None` outside Slurm.
    pub job: Option<Job>,
    /// What was set and not understood, and what that costs: a line each.
    pub notes: Vec<String>,
}

impl Job {
    /// The job of this process, and what of its variables was not understood.
    pub fn current() -> Told {
        Job::read(|name| std::env::var(name).ok())
    }

    /// [`Job::current`] from any source of variables.
    pub fn read(var: impl Fn(&str) -> Option<String>) -> Told {
        let mut read = Reader { var: &var, notes: Vec::new() };
        let job = read.number("SLURM_JOB_ID", "this process counts as outside Slurm").map(|id| Job {
            id,
            restarts: read.number("SLURM_RESTART_COUNT", "requeues are counted from 0").unwrap_or(0),
            nodes: read.nodes("SLURM_JOB_NODELIST", "the nodes of the job are not known").unwrap_or_default(),
            tasks: read.number("SLURM_NTASKS", "the number of tasks is not known"),
            tasks_per_node: read.number("SLURM_NTASKS_PER_NODE", "tasks on each node are not known"),
            array: read
                .number("SLURM_ARRAY_JOB_ID", "the job counts as no array's")
                .zip(read.number("SLURM_ARRAY_TASK_ID", "the job counts as no array's")),
            step: read.step(),
        });
        Told { job, notes: read.notes }
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

/// Reads variables, and writes down which it did not understand.
struct Reader<'a, F> {
    var: &'a F,
    notes: Vec<String>,
}

impl<F: Fn(&str) -> Option<String>> Reader<'_, F> {
    fn number<T: FromStr>(&mut self, name: &str, cost: &str) -> Option<T> {
        let text = (self.var)(name)?;
        let value = text.trim().parse().ok();
        if value.is_none() {
            self.notes.push(format!("{name}={text} is no number that this herd knows: {cost}"));
        }
        value
    }

    fn nodes(&mut self, name: &str, cost: &str) -> Option<Vec<String>> {
        let Some(list) = (self.var)(name) else {
            self.notes.push(format!("{name} is not set where Slurm sets it: {cost}"));
            return None;
        };
        match hostlist::expand(&list) {
            Ok(nodes) => Some(nodes),
            Err(e) => {
                self.notes.push(format!("{name}={list}: {}: {cost}", e.fact));
                None
            }
        }
    }

    fn step(&mut self) -> Option<Step> {
        const COST: &str = "the step is not known";
        let id = self.number::<i64>("SLURM_STEP_ID", COST).filter(|&id| is_step(id))?;
        let tasks = self.number("SLURM_STEP_NUM_TASKS", COST)?;
        Some(Step { id: id as u64, tasks, nodes: self.nodes("SLURM_STEP_NODELIST", COST)? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    type Pairs = &'static [(&'static str, &'static str)];

    fn told(pairs: Pairs) -> Told {
        Job::read(|k| pairs.iter().find(|(name, _)| *name == k).map(|(_, v)| v.to_string()))
    }

    fn read(pairs: Pairs) -> Job {
        let told = told(pairs);
        assert!(told.notes.is_empty(), "{:?}", told.notes);
        told.job.unwrap()
    }

    #[test]
    fn no_job_outside_slurm() {
        assert_eq!(told(&[("PATH", "/bin"), ("SLURM_CONF", "/x")]), Told::default());
    }

    /// As printed by `env` in a batch script of Slurm 22.05, and by a task of a step in it after one requeue.
    #[test]
    fn batch_script_and_step() {
        const BATCH: Pairs = &[("SLURM_JOB_ID", "2"), ("SLURM_JOB_NODELIST", "herd[1-2]"), ("SLURM_NTASKS", "4")];
        let job = read(BATCH);
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
        let job = read(STEP);
        assert_eq!(job.restarts, 1);
        assert_eq!(job.step.unwrap(), Step { id: 0, tasks: 1, nodes: vec!["herd1".into()] });
    }

    /// A batch script of Slurm 26.05 has a step id, and none of a step's other variables.
    #[test]
    fn a_batch_script_is_no_step_whatever_its_number() {
        for id in ["-5", "4294967291"] {
            let pairs = [("SLURM_JOB_ID", "2"), ("SLURM_JOB_NODELIST", "n1"), ("SLURM_STEP_ID", id)];
            let told = Job::read(|k| pairs.iter().find(|(name, _)| *name == k).map(|(_, v)| v.to_string()));
            assert_eq!((told.job.unwrap().step, told.notes.len()), (None, 0), "{id}");
        }
    }

    #[test]
    fn an_element_of_an_array_is_addressed_as_one() {
        const BASE: Pairs = &[("SLURM_JOB_ID", "8"), ("SLURM_JOB_NODELIST", "n1"), ("SLURM_NTASKS_PER_NODE", "2")];
        let job = read(BASE);
        assert_eq!((job.address().as_str(), job.tasks_per_node), ("8", Some(2)));
        const ELEMENT: Pairs = &[
            ("SLURM_JOB_ID", "8"),
            ("SLURM_JOB_NODELIST", "n1"),
            ("SLURM_ARRAY_JOB_ID", "8"),
            ("SLURM_ARRAY_TASK_ID", "3"),
        ];
        assert_eq!(read(ELEMENT).address(), "8_3");
    }

    /// (what is set, what is left of the job, what is said)
    #[test]
    fn an_unknown_form_costs_what_the_variable_is_for_and_is_said() {
        let cases: [(Pairs, Option<u64>, &str); 6] = [
            (&[("SLURM_JOB_ID", "seven")], None, "SLURM_JOB_ID=seven is no number"),
            (&[("SLURM_JOB_ID", "1")], Some(1), "SLURM_JOB_NODELIST is not set"),
            (&[("SLURM_JOB_ID", "1"), ("SLURM_JOB_NODELIST", "n[1-")], Some(1), "a bracket is not closed"),
            (
                &[("SLURM_JOB_ID", "1"), ("SLURM_JOB_NODELIST", "n1"), ("SLURM_RESTART_COUNT", "-1")],
                Some(1),
                "SLURM_RESTART_COUNT=-1",
            ),
            (
                &[("SLURM_JOB_ID", "1"), ("SLURM_JOB_NODELIST", "n1"), ("SLURM_STEP_ID", "StepId=1.0")],
                Some(1),
                "SLURM_STEP_ID=StepId=1.0",
            ),
            (
                &[("SLURM_JOB_ID", "1"), ("SLURM_JOB_NODELIST", "n1"), ("SLURM_NTASKS_PER_NODE", "2(x3)")],
                Some(1),
                "SLURM_NTASKS_PER_NODE=2(x3)",
            ),
        ];
        for (pairs, id, text) in cases {
            let told = told(pairs);
            assert_eq!((told.job.map(|j| j.id), told.notes.len()), (id, 1), "{pairs:?}");
            assert!(told.notes[0].contains(text), "{:?}", told.notes);
        }
    }
}
