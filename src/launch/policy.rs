//! Whether to start again. A pure function of how the attempts went, so that it can be tested by telling it stories.

use super::history::{Class, History, Record, UNFIT};
use crate::config::LaunchSection;
use crate::error::Exit;
use jiff::Timestamp;
use std::time::Duration;

/// What to do after an attempt has ended.
#[derive(Clone, Debug, PartialEq)]
pub enum Decision {
    /// The run is complete.
    Done,
    /// Nothing more by itself; `why` is for people.
    Stop { exit: Exit, why: String },
    /// Start the ranks again after `wait`; `skip`: without the batch of this step.
    Again { wait: Duration, skip: Option<u64> },
    /// Put the job back into the queue.
    Requeue { why: String },
}

/// Decides after the last of `attempts`, which has ended. `exit` is the code that the ranks' error stands for.
pub fn decide(config: &LaunchSection, attempts: &[Record], exit: Exit, now: Timestamp) -> Decision {
    let Some(last) = attempts.last() else { return again(Duration::ZERO) };
    match last.class {
        Some(Class::Done) => return Decision::Done,
        Some(Class::StopAt) => {
            return stop(Exit::Requeue, format!("stopped at step {}, as train.stop_at says", last.last_step))
        }
        Some(Class::Stopped) if config.requeue => {
            return Decision::Requeue { why: format!("stopped after step {} on a signal", last.last_step) }
        }
        Some(Class::Stopped) => return stop(Exit::Requeue, "stopped on a signal, and launch.requeue is false".into()),
        Some(Class::User) => return stop(exit, last.fact.clone()),
        _ => {}
    }
    let most = config.max_attempts;
    #[cfg(test)]
    let most = most + u64::from(crate::host::planted() == Some(crate::host::Planted::OneMoreStart));
    if attempts.len() as u64 >= most {
        return stop(Exit::GaveUp, format!("all {} starts (launch.max_attempts) are spent", config.max_attempts));
    }
    let recent = attempts.iter().filter(|a| seconds(a.started, now) < config.window_s).count() as u64;
    if recent >= config.window_attempts {
        let why = format!(
            "{recent} starts within {} s (launch.window_attempts is {})",
            config.window_s, config.window_attempts
        );
        return stop(Exit::GaveUp, why);
    }
    let same_step = crashes_in_a_row(attempts);
    let step = last.last_step + 1;
    if same_step == 2 && config.skip_bad_batch {
        return Decision::Again { wait: Duration::ZERO, skip: Some(step) };
    }
    if same_step >= 3 {
        let why = format!("the ranks crashed {same_step} times in a row in step {step}: {}", last.fact);
        return stop(Exit::GaveUp, why);
    }
    let stuck = without_progress(attempts);
    if stuck >= config.no_progress {
        let why = format!(
            "{stuck} starts in a row without a new step (launch.no_progress is {}), the run stands at step {}: {}",
            config.no_progress,
            History::high_water(attempts),
            last.fact
        );
        return stop(Exit::GaveUp, why);
    }
    again(backoff(config, stuck))
}

fn again(wait: Duration) -> Decision {
    Decision::Again { wait, skip: None }
}

fn stop(exit: Exit, why: String) -> Decision {
    Decision::Stop { exit, why }
}

/// Attempts at the end that ended by a fault before any new step was finished. One that found a node unfit that was not known to
/// be counts as none: there is one candidate less, and the next start is on another.
fn without_progress(attempts: &[Record]) -> u64 {
    let faulty = |(i, a): &(usize, &Record)| {
        a.class.is_some_and(Class::is_fault) && a.last_step <= History::high_water(&attempts[..*i])
    };
    let first = |(i, a): &(usize, &Record)| *i == 0 && a.last_step == 0 && a.class.is_some_and(Class::is_fault);
    let row: Vec<&Record> =
        attempts.iter().enumerate().rev().take_while(|x| faulty(x) || first(x)).map(|(_, a)| a).collect();
    let news = |i: usize, a: &Record| {
        let before = |n: &String| row[i + 1..].iter().any(|b| b.blamed.contains(n));
        a.reason == UNFIT && a.blamed.iter().any(|n| !before(n))
    };
    row.iter().enumerate().filter(|(i, a)| !news(*i, a)).count() as u64
}

/// Attempts at the end whose processes crashed in the same step.
fn crashes_in_a_row(attempts: &[Record]) -> u64 {
    let step = attempts.last().map(|a| a.last_step);
    let same = |a: &&Record| a.class == Some(Class::Process) && Some(a.last_step) == step;
    attempts.iter().rev().take_while(same).count() as u64
}

/// Nothing after an attempt that made progress, or after the first that did not; then `backoff_s`, doubled each time.
fn backoff(config: &LaunchSection, stuck: u64) -> Duration {
    match stuck {
        0 | 1 => Duration::ZERO,
        n => {
            let wait = config.backoff_s * 2f64.powi((n - 2).min(30) as i32);
            Duration::from_secs_f64(wait.min(config.backoff_max_s))
        }
    }
}

fn seconds(from: Timestamp, to: Timestamp) -> f64 {
    to.duration_since(from).as_secs_f64()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Tells a story: each attempt lasts `minutes`, comes to `step` and ends as `class`; the decision after the last.
    fn story(config: &LaunchSection, parts: &[(f64, u64, Class)]) -> Decision {
        let mut now = Timestamp::from_second(1_000_000).unwrap();
        let mut attempts = Vec::new();
        for (i, &(minutes, last_step, class)) in parts.iter().enumerate() {
            let started = now;
            now = now.checked_add(jiff::SignedDuration::from_secs_f64(60.0 * minutes)).unwrap();
            attempts.push(Record {
                attempt: i as u64 + 1,
                job: 1,
                restarts: 0,
                nodes: vec![],
                shrunk_to: None,
                srun: None,
                started,
                ended: Some(now),
                last_step,
                class: Some(class),
                reason: String::new(),
                fact: "x".into(),
                blamed: vec![],
            });
        }
        decide(config, &attempts, Exit::Config, now)
    }

    fn wait(d: Decision) -> f64 {
        match d {
            Decision::Again { wait, skip: None } => wait.as_secs_f64(),
            other => panic!("{other:?}"),
        }
    }

    fn gave_up(d: Decision, words: &str) {
        match d {
            Decision::Stop { exit: Exit::GaveUp, why } => assert!(why.contains(words), "{why}"),
            other => panic!("{words}: {other:?}"),
        }
    }

    use Class::*;

    #[test]
    fn ends_that_are_no_faults() {
        let c = LaunchSection::default();
        assert_eq!(story(&c, &[(1.0, 10, Done)]), Decision::Done);
        assert!(matches!(story(&c, &[(1.0, 10, StopAt)]), Decision::Stop { exit: Exit::Requeue, .. }));
        assert!(matches!(story(&c, &[(1.0, 10, Stopped)]), Decision::Requeue { .. }));
        let no = LaunchSection { requeue: false, ..c.clone() };
        assert!(matches!(story(&no, &[(1.0, 10, Stopped)]), Decision::Stop { exit: Exit::Requeue, .. }));
        assert!(matches!(story(&c, &[(0.1, 0, User)]), Decision::Stop { exit: Exit::Config, .. }));
    }

    #[test]
    fn a_fault_after_progress_is_followed_at_once() {
        let c = LaunchSection::default();
        for class in [Node, Process, Storage, Unknown, Supervisor] {
            assert_eq!(wait(story(&c, &[(60.0, 10, class)])), 0.0, "{class:?}");
        }
        let faults: Vec<_> = (1..=50).map(|i| (30.0, 10 * i, if i % 2 == 0 { Node } else { Process })).collect();
        assert_eq!(wait(story(&c, &faults)), 0.0);
    }

    #[test]
    fn a_deterministic_crash_stops_after_three_tries() {
        let c = LaunchSection::default();
        assert_eq!(wait(story(&c, &[(9.0, 6, Process)])), 0.0);
        assert_eq!(wait(story(&c, &[(9.0, 6, Process), (1.0, 6, Process)])), 0.0);
        gave_up(story(&c, &[(9.0, 6, Process), (1.0, 6, Process), (1.0, 6, Process)]), "3 times in a row in step 7");
        // In the first step of all.
        gave_up(story(&c, &[(1.0, 0, Process), (1.0, 0, Process), (1.0, 0, Process)]), "3 times in a row in step 1");
        // Not the same step: the run does come on.
        assert_eq!(wait(story(&c, &[(9.0, 6, Process), (1.0, 7, Process), (1.0, 8, Process)])), 0.0);
    }

    #[test]
    fn a_batch_that_crashed_twice_is_left_out_where_configured() {
        let c = LaunchSection { skip_bad_batch: true, ..Default::default() };
        let twice = [(9.0, 6, Process), (1.0, 6, Process)];
        assert_eq!(story(&c, &twice), Decision::Again { wait: Duration::ZERO, skip: Some(7) });
        gave_up(story(&c, &[twice[0], twice[1], (1.0, 6, Process)]), "in step 7");
    }

    #[test]
    fn three_starts_without_progress_stop_the_run_and_are_spaced() {
        let c = LaunchSection { no_progress: 5, ..Default::default() };
        let mut parts = vec![(60.0, 100, Node)];
        let mut waits = Vec::new();
        for i in 0..4 {
            // Each dies elsewhere, none reaches a new step.
            parts.push((1.0, 100 - i, Node));
            waits.push(wait(story(&c, &parts)));
        }
        assert_eq!(waits, [0.0, 5.0, 10.0, 20.0]);
        parts.push((1.0, 100, Unknown));
        gave_up(story(&c, &parts), "5 starts in a row without a new step");
        // One new step clears the count; a stop on request breaks the row.
        parts.push((1.0, 101, Node));
        assert_eq!(wait(story(&c, &parts)), 0.0);
        let three = LaunchSection::default();
        gave_up(story(&three, &[(9.0, 5, Node), (1.0, 5, Node), (1.0, 4, Node), (1.0, 5, Node)]), "stands at step 5");
        assert_eq!(wait(story(&three, &[(9.0, 5, Node), (1.0, 5, Stopped), (1.0, 5, Node)])), 0.0);
        let far = LaunchSection { no_progress: 100, backoff_max_s: 60.0, window_attempts: 1000, ..Default::default() };
        let many: Vec<_> = (0..90).map(|_| (1.0, 0, Unknown)).collect();
        assert_eq!(wait(story(&far, &many)), 60.0);
    }

    #[test]
    fn spares_that_cannot_run_the_ranks_are_used_up_before_the_run_stops() {
        let now = Timestamp::from_second(1_000_000).unwrap();
        let record = |reason: &str, blamed: &str| Record {
            attempt: 1,
            job: 1,
            restarts: 0,
            nodes: vec![],
            shrunk_to: None,
            started: now,
            srun: None,
            ended: Some(now),
            last_step: 7,
            class: Some(Node),
            reason: reason.into(),
            fact: "x".into(),
            blamed: vec![blamed.into()],
        };
        let stuck = |parts: &[(&str, &str)]| {
            let first = Record { class: Some(Process), ..record("signal", "n1") };
            let rest = parts.iter().map(|(reason, node)| record(reason, node));
            without_progress(&std::iter::once(first).chain(rest).collect::<Vec<_>>())
        };
        assert_eq!(stuck(&[(UNFIT, "n2"), (UNFIT, "n3"), (UNFIT, "n4")]), 0);
        assert_eq!(stuck(&[(UNFIT, "n2"), (UNFIT, "n2"), (UNFIT, "n2")]), 2, "the same node again is no news");
        assert_eq!(stuck(&[("missed_probes", "n2"), (UNFIT, "n3")]), 1);
    }

    #[test]
    fn the_budget_is_counted_by_job_and_by_window() {
        let c = LaunchSection { window_attempts: 3, window_s: 3600.0, max_attempts: 6, ..Default::default() };
        let slow: Vec<_> = (1..=5).map(|i| (40.0, i, Node)).collect();
        assert_eq!(wait(story(&c, &slow)), 0.0);
        gave_up(story(&c, &[(10.0, 1, Node), (10.0, 2, Node), (10.0, 3, Node)]), "3 starts within 3600 s");
        let all: Vec<_> = (1..=6).map(|i| (40.0, i, Node)).collect();
        gave_up(story(&c, &all), "all 6 starts");
    }
}
