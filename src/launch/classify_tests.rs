//! What each kind of end means.

use super::*;
use crate::exit_record::{ExitRecord, Lost};
use crate::liveness::{verdict::Evidence, Phase};
use crate::slurm::messages;

fn verdict(accuser: usize, reason: Reason, node: &str, whole_node: bool) -> Verdict {
    Verdict {
        attempt: 1,
        accuser,
        accuser_node: "n0".into(),
        reason,
        ranks: if node.is_empty() { vec![] } else { vec![1] },
        nodes: node.split_whitespace().map(str::to_string).collect(),
        whole_node,
        step: 7,
        phase: Phase::Reduce,
        exit: Exit::Peer.code(),
        time: jiff::Timestamp::UNIX_EPOCH,
        fact: "a fact".into(),
        evidence: Evidence::default(),
    }
}

/// Of ranks that had met, on four nodes.
fn said(lines: &[&str]) -> Seen {
    let whole = |l: &str| match l.starts_with("srun: ") || l.starts_with("slurmstepd") {
        true => l.to_string(),
        false => format!("srun: error: {l}"),
    };
    let said = lines.iter().map(|l| messages::parse(&whole(l)).unwrap()).collect();
    Seen { said, code: Some(143), met: true, nodes: 4, ..Default::default() }
}

fn record(exit: Exit, rank: usize, agreed: bool) -> ExitRecord {
    ExitRecord { code: exit.code(), rank: Some(rank), node: format!("n{}", rank + 1), agreed, fact: "its words".into() }
}

const ABORTED: &str = "srun: Job step aborted: Waiting up to 7 seconds for job step to finish.";

fn lost(all: &[(&str, i64)]) -> Vec<Lost> {
    let one = |&(node, ms): &(&str, i64)| Lost {
        node: node.into(),
        by: "n9".into(),
        time: jiff::Timestamp::from_millisecond(1_000_000 + ms).unwrap(),
    };
    all.iter().map(one).collect()
}

/// Where Slurm ends the step, who saw the first end says whose it was, whatever srun says first.
#[test]
fn who_was_seen_to_end_first_is_to_blame() {
    let mixed = &[ABORTED, "n1: task 0: Killed", "n2: task 1: Killed", "n3: task 2: Exited with exit code 14"][..];
    let together = &[ABORTED, "n[1-3]: tasks 0-2: Killed"][..];
    let before = &["n1: task 0: Killed", ABORTED, "n2: task 1: Killed"][..];
    // what srun said, who was lost and when, whom it is counted against
    type Row<'a> = (&'a [&'a str], &'a [(&'a str, i64)], &'a str);
    let table: &[Row] = &[
        (mixed, &[("n2", 0), ("n1", 120), ("n3", 121)], "n2"),
        (before, &[("n2", 0)], "n2"),
        (before, &[("n1", 0), ("n2", 12)], "n1"),
        (together, &[("n3", 0), ("n1", 200)], "n3"),
        (&[ABORTED], &[("n2", 0)], "n2"),
        (mixed, &[], "n1"),
        // who left with a code of its own is not taken for one that Slurm killed
        (&[ABORTED, "n2: task 1: Exited with exit code 1", "n[1,3]: tasks 0,2: Killed"], &[("n3", 0)], "n2"),
    ];
    for (lines, seen, blamed) in table {
        let found = classify(&Seen { lost: lost(seen), ..said(lines) });
        assert_eq!((found.class, found.nodes.join(" ").as_str()), (Class::Process, *blamed), "{lines:?} {seen:?}");
    }
    // a stop that was asked for, a rank's own word, and a Slurm that leaves steps alone come before it
    let seen = Seen { lost: lost(&[("n2", 0)]), ..said(&["n1: task 0: Killed"]) };
    assert_eq!(classify(&Seen { leaves_steps: true, ..seen.clone() }).nodes, ["n1"]);
    let with_record = Seen { records: vec![record(Exit::Storage, 0, false)], ..seen.clone() };
    assert_eq!(classify(&with_record).class, Class::Storage);
    assert_ne!(classify(&Seen { asked: true, ..seen }).nodes, ["n2"]);
    // the warning of the time limit ends ranks that have no handler for it yet
    let warned = Seen { asked: true, code: Some(138), ..said(&["n[1-2]: tasks 0-1: User defined signal 1"]) };
    assert_eq!(classify(&warned).nodes.len(), 0, "{:?}", classify(&warned));
    // Slurm ends all ranks when their srun is killed, and somebody sees one of them end first
    let killed = classify(&Seen { lost: lost(&[("n2", 0)]), code: Some(137), ..said(&[]) });
    assert_eq!((killed.reason.as_str(), killed.nodes.len()), ("srun_killed", 0));
}

/// A rank that complains of a peer leaves, and Slurm kills the others for that: none of them is to blame, in whatever order srun
/// tells of it. But one whose end was seen before the complaint is, and one that left by a code of its own.
#[test]
fn whom_slurm_kills_for_a_complaint_is_not_to_blame() {
    let (c, k) = ("n2: task 1: Exited with exit code 31", "n1: task 0: Killed");
    let complaint = |ms: i64| Verdict {
        accuser: 1,
        time: jiff::Timestamp::from_millisecond(1_000_000 + ms).unwrap(),
        ..verdict(1, Reason::PeerLost, "", false)
    };
    for lines in [&[ABORTED, k, c][..], &[ABORTED, c, k], &[c, ABORTED, k], &[c, k, ABORTED], &[ABORTED, k]] {
        let seen = Seen { verdicts: vec![complaint(0)], nodes: 2, ..said(lines) };
        let found = classify(&seen);
        assert_eq!(
            (found.class, found.nodes.len(), found.reason.as_str()),
            (Class::Unknown, 0, "peer_lost"),
            "{lines:?}"
        );
        let after = Seen { lost: lost(&[("n1", 12)]), ..seen.clone() };
        assert!(classify(&after).nodes.is_empty(), "{lines:?}: it follows from the complaint");
        let before = Seen { lost: lost(&[("n1", -45)]), ..seen };
        assert_eq!(classify(&before).nodes, ["n1"], "{lines:?}");
    }
    let seen = Seen { verdicts: vec![complaint(0)], ..said(&[ABORTED, k, "n3: task 2: Exited with exit code 3", c]) };
    assert_eq!(classify(&seen).nodes, ["n3"]);
    // told before the complaint, and before Slurm ends the step
    let seen = Seen { verdicts: vec![complaint(0)], ..said(&[k, c, ABORTED, "n3: task 2: Killed"]) };
    assert_eq!(classify(&seen).nodes, ["n1"]);
}

#[test]
fn good_ends() {
    // srun may say anything after the last step.
    let done = Seen { finished: true, ..said(&["n1: task 1: Exited with exit code 1"]) };
    assert_eq!((classify(&done).class, done.is_fault()), (Class::Done, false));
    let stop = Seen { stopped: true, asked: true, code: Some(75), ..Default::default() };
    assert_eq!(classify(&stop).class, Class::Stopped);
    assert_eq!(classify(&Seen { at_stop: true, ..stop.clone() }).class, Class::Stopped);
    assert_eq!(classify(&Seen { at_stop: true, asked: false, ..stop }).class, Class::StopAt);
    assert!(!said(&["n[1-2]: tasks 0-1: Exited with exit code 75"]).is_fault());
}

#[test]
fn srun_s_zero_is_no_success() {
    let found = classify(&Seen { code: Some(0), ..Default::default() });
    assert_eq!((found.class, found.reason.as_str()), (Class::Unknown, "no_end"));
}

/// (what srun said, class, nodes blamed, reason)
#[test]
fn what_slurm_says() {
    let table: &[(&[&str], Class, &str, &str)] = &[
        (&["n2: task 1: Killed"], Class::Process, "n2", "signal"),
        (&["n2: task 1: Killed", "n1: task 0: Terminated"], Class::Process, "n2", "signal"),
        (&["n1: task 0: Terminated", "n2: task 1: Segmentation fault"], Class::Process, "n2", "signal"),
        (&["n2: task 1: Killed", "n3: task 2: Killed"], Class::Process, "n2 n3", "signal"),
        (&["n2: task 1: Out Of Memory"], Class::Process, "n2", "out_of_memory"),
        // A rank that crashes because another was killed, as with MPICH over UCX, is not to blame, whoever is heard first.
        (&["n2: task 1: Killed", "n1: task 0: Segmentation fault"], Class::Process, "n2", "signal"),
        (&["n1: task 0: Segmentation fault", "n2: task 1: Killed"], Class::Process, "n2", "signal"),
        (&["n1: task 0: Segmentation fault", "n2: task 1: Segmentation fault"], Class::Process, "n1", "signal"),
        // What PMIx and Slurm end when a rank is lost, as 24.11 says it.
        (
            &["n3: task 2: Killed", ABORTED, "n2: task 1: Exited with exit code 14", "n1: task 0: Killed"],
            Class::Process,
            "n3",
            "signal",
        ),
        (
            &[ABORTED, "n1: task 0: Killed", "n3: task 2: Exited with exit code 14", "n2: task 1: Killed"],
            Class::Process,
            "n1",
            "signal",
        ),
        (&[ABORTED, "n2: task 1: Exited with exit code 14", "n1: task 0: Killed"], Class::Unknown, "", "step_ended"),
        (&[ABORTED, "n1: task 0: Killed", "n2: task 1: Exited with exit code 3"], Class::Process, "n2", "code_3"),
        (&[ABORTED, "n[1-3]: tasks 0-2: Killed"], Class::Unknown, "", "step_ended"),
        // Codes that no rank has vouched for.
        (&["n1: task 0: Exited with exit code 10"], Class::Process, "n1", "code_10"),
        (&["n1: task 0: Exited with exit code 1"], Class::Process, "n1", "code_1"),
        (&["n1: task 0: Exited with exit code 14"], Class::Unknown, "", "code_14"),
        (&["n1: task 0: Exited with exit code 31"], Class::Unknown, "", "code_31"),
        (
            &["n1: task 0: Exited with exit code 31", "n2: task 1: Exited with exit code 3"],
            Class::Process,
            "n2",
            "code_3",
        ),
        (&["n1: task 0: Exited with exit code 15", "n2: task 1: Killed"], Class::Process, "n2", "signal"),
        (
            &["Task launch for StepId=1.6 failed on node n3: Communication connection failure"],
            Class::Node,
            "n3",
            "node_lost",
        ),
        (&["Node failure on n3"], Class::Node, "n3", "node_lost"),
        (
            &["Unable to create step for job 1: Requested node configuration is not available"],
            Class::Unknown,
            "",
            "refused",
        ),
    ];
    for (lines, class, nodes, reason) in table {
        let seen = said(lines);
        let found = classify(&seen);
        assert_eq!(
            (found.class, found.nodes.join(" ").as_str(), found.reason.as_str()),
            (*class, *nodes, *reason),
            "{lines:?}"
        );
        assert!(seen.is_fault(), "{lines:?}");
    }
    // The only one that was killed, where all have ended and PMIx the others; with two that were, nobody can tell.
    let gone = |lines: &[&str]| classify(&Seen { nodes: 3, ..said(lines) });
    let [a, b] = ["n1: task 0: Exited with exit code 14", "n2: task 1: Exited with exit code 14"];
    let only = gone(&[ABORTED, a, b, "n3: task 2: Killed"]);
    assert_eq!((only.class, only.nodes.join(" ").as_str(), only.ranks), (Class::Process, "n3", vec![2]));
    assert!(gone(&[ABORTED, a, "n2: task 1: Killed", "n3: task 2: Killed"]).nodes.is_empty());
    assert!(gone(&[ABORTED, a, "n3: task 2: Killed"]).nodes.is_empty(), "one has not been heard of");
    // Before 24.11 Slurm ends no step by itself: what dies after the word that it ends was killed by MPI_Abort's.
    for lines in
        [&[ABORTED, "n1: task 0: Killed", "n2: task 1: Exited with exit code 31"][..], &[ABORTED, "n1: task 0: Killed"]]
    {
        let found = classify(&Seen { leaves_steps: true, ..said(lines) });
        assert_eq!((found.class, found.nodes.len()), (Class::Unknown, 0), "{lines:?}");
    }
    let first = classify(&Seen { leaves_steps: true, ..said(&["n2: task 1: Killed", ABORTED, "n1: task 0: Killed"]) });
    assert_eq!((first.class, first.nodes.join(" ").as_str()), (Class::Process, "n2"));
    assert!(!said(&["n1: task 0: Terminated"]).is_fault(), "srun's end will say more");
    // A signal to all of a job's processes makes srun kill the step before the ranks have saved: no node's fault.
    let killed = classify(&Seen { asked: true, code: Some(137), ..said(&["n[1-2]: tasks 0-1: Killed"]) });
    assert_eq!((killed.class, killed.nodes.len()), (Class::Unknown, 0));
}

/// A code is herd's where a rank has written so; then its meaning is the table's.
#[test]
fn what_the_ranks_wrote_down() {
    let table: &[(Exit, bool, Class, &str)] = &[
        (Exit::Config, true, Class::User, ""),
        (Exit::Config, false, Class::User, ""),
        (Exit::Usage, false, Class::User, ""),
        (Exit::World, false, Class::User, ""),
        (Exit::Device, false, Class::Node, "n2"),
        (Exit::Storage, false, Class::Storage, ""),
        (Exit::Internal, false, Class::Process, "n2"),
        (Exit::Internal, true, Class::Process, ""),
    ];
    for (exit, agreed, class, nodes) in table {
        let line = format!("n[1-4]: tasks 0-3: Exited with exit code {}", exit.code());
        for lines in [vec![line.as_str()], vec![ABORTED, &line]] {
            let found = classify(&Seen { records: vec![record(*exit, 1, *agreed)], met: false, ..said(&lines) });
            assert_eq!((found.class, found.nodes.join(" ").as_str(), found.exit), (*class, *nodes, *exit), "{exit:?}");
            assert!(
                found.fact.contains("its words") && found.fact.contains("rank 1 on n2") != *agreed,
                "{}",
                found.fact
            );
        }
    }
    // the cause before what it led to
    let records =
        vec![record(Exit::Internal, 0, false), record(Exit::Device, 1, false), record(Exit::Device, 3, false)];
    let found = classify(&Seen { records, ..said(&["n1: task 0: Exited with exit code 1"]) });
    assert_eq!((found.class, found.nodes.join(" ").as_str()), (Class::Node, "n2 n4"));
    // a disk on which nothing can be written: the rank's words on stderr do
    let spoken = Seen { error: Some("no space left".into()), ..said(&["n1: task 0: Exited with exit code 21"]) };
    assert_eq!((classify(&spoken).class, classify(&spoken).exit), (Class::Storage, Exit::Storage));
    let fact = classify(&spoken).fact;
    assert!(fact.contains("no space left"), "{fact}");
    let device = Seen { error: Some("x".into()), ..said(&["n1: task 0: Exited with exit code 14"]) };
    assert_eq!(classify(&device).nodes.len(), 0, "no node is blamed on a word that may be another rank's");
}

#[test]
fn a_node_that_does_not_answer_comes_before_tasks_that_died_elsewhere() {
    for lines in [
        &[ABORTED, "n2: task 1: Exited with exit code 14", "n1: task 0: Killed"][..],
        &["n2: task 1: Segmentation fault"],
        &["n1: task 0: Exited with exit code 14"],
    ] {
        let seen = said(lines);
        assert!(seen.may_follow_from_a_lost_node(), "{lines:?}");
        let found = classify(&Seen { silent: vec!["n3".into()], ..seen });
        assert_eq!((found.class, found.nodes.join(" ").as_str()), (Class::Node, "n3"), "{lines:?}");
    }
    // A rank that saw another die of Slurm's doing accuses the wrong one.
    let seen =
        Seen { verdicts: vec![verdict(0, Reason::Signal, "n1", false)], ..said(&[ABORTED, "n1: task 0: Killed"]) };
    assert!(seen.may_follow_from_a_lost_node());
    assert_eq!(classify(&Seen { silent: vec!["n3".into()], ..seen }).nodes, ["n3"]);
    // Nobody need be asked where somebody is named.
    for named in [
        said(&["Node failure on n3"]),
        Seen { records: vec![record(Exit::Config, 0, true)], ..said(&["n1: task 0: Exited with exit code 10"]) },
        Seen { verdicts: vec![verdict(0, Reason::MissedProbes, "n1", true)], ..Default::default() },
        Seen { asked: true, ..said(&["n1: task 0: Killed"]) },
        Seen { stopped: true, ..said(&["n1: task 0: Killed"]) },
    ] {
        assert!(!named.may_follow_from_a_lost_node(), "{named:?}");
    }
}

/// (what was said before the ranks had met, class, nodes, exit)
#[test]
fn a_node_on_which_the_program_does_not_start() {
    let exec = "slurmstepd: error: execve(): /x/herd: Exec format error";
    let exec_there = "slurmstepd-n3: error: execve(): /x/herd: Exec format error";
    let table: &[(&[&str], Class, &str)] = &[
        (&[exec, "n2: task 1: Exited with exit code 8"], Class::Node, "n2"),
        (&[exec_there, "n3: task 2: Exited with exit code 8", ABORTED, "n1: task 0: Killed"], Class::Node, "n3"),
        (&["n2: task 1: Exited with exit code 127"], Class::Node, "n2"),
        (&["n2: task 1: Illegal instruction"], Class::Node, "n2"),
        (&[exec, "n[1-4]: tasks 0-3: Exited with exit code 2"], Class::User, ""),
        (&["n1: task 0: Exited with exit code 31"], Class::Unknown, ""),
        (&["n1: task 0: Terminated"], Class::Unknown, ""),
    ];
    for (lines, class, nodes) in table {
        let found = classify(&Seen { met: false, ..said(lines) });
        assert_eq!((found.class, found.nodes.join(" ").as_str()), (*class, *nodes), "{lines:?}: {}", found.fact);
    }
    let none = classify(&Seen { met: false, ..said(&[exec, "n[1-4]: tasks 0-3: Exited with exit code 2"]) });
    assert!(none.exit == Exit::World && none.fact.contains("none of the 4 nodes"), "{}", none.fact);
}

#[test]
fn a_command_line_that_srun_refuses_is_told_in_its_words_and_not_tried_again() {
    let refused = |line: &str, code| Seen { code: Some(code), srun: vec![line.into()], nodes: 4, ..Default::default() };
    let line = "--nodes is incompatible with --distribution=arbitrary";
    let found = classify(&refused(line, 1));
    assert_eq!((found.class, found.reason.as_str(), found.exit), (Class::User, "srun_refused", Exit::World));
    assert!(found.fact.contains(line), "{}", found.fact);
    assert_eq!(classify(&refused("unrecognized option '--no-such-option'", 255)).reason, "srun_refused");
    // A controller that is away, a signal, a step that did run: no refusal.
    for other in [
        refused("Unable to contact slurm controller (connect failure)", 1),
        refused(line, 137),
        Seen { met: true, ..refused(line, 1) },
    ] {
        assert_eq!(classify(&other).class, Class::Unknown, "{other:?}");
    }
}

#[test]
fn what_the_ranks_say() {
    use Reason::*;
    let table = [
        (MissedProbes, true, Class::Node, "n1"),
        (MissedProbes, false, Class::Process, "n1"),
        (DeviceError, false, Class::Node, "n1"),
        (SlowNode, false, Class::Node, "n1"),
        (Signal, false, Class::Process, "n1"),
        (NoProgress, false, Class::Process, "n1"),
        (SkippedCollective, false, Class::Process, "n1"),
        (Internal, false, Class::Process, "n1"),
        (IoError, false, Class::Storage, ""),
        (NonFinite, false, Class::Process, ""),
        (UserError, false, Class::User, ""),
        (WireStalled, false, Class::Unknown, ""),
    ];
    for (reason, whole, class, nodes) in table {
        let seen = Seen { verdicts: vec![verdict(0, reason, "n1", whole)], ..Default::default() };
        let found = classify(&seen);
        assert_eq!((found.class, found.nodes.join(" ").as_str()), (class, nodes), "{reason:?}");
        assert!(seen.is_fault());
    }
    assert_eq!(
        classify(&Seen { verdicts: vec![verdict(0, MissedProbes, "n1", true)], ..Default::default() }).reason,
        "missed_probes"
    );
}

#[test]
fn a_cause_comes_before_a_symptom_whoever_names_it() {
    let lost = verdict(0, Reason::PeerLost, "", false);
    let seen = Seen { verdicts: vec![lost.clone()], ..said(&["n2: task 1: Killed"]) };
    assert_eq!(classify(&seen).nodes, ["n2"]);
    // Of two that were killed, the one that had complained of the other is not to blame.
    let seen = Seen { verdicts: vec![lost.clone()], ..said(&["n0: task 0: Killed", "n2: task 1: Killed"]) };
    assert_eq!(classify(&seen).nodes, ["n2"]);
    let silent = verdict(2, Reason::MissedProbes, "n1", true);
    let seen = Seen { verdicts: vec![lost.clone(), silent], ..said(&["n3: task 3: Killed"]) };
    assert_eq!((classify(&seen).class, classify(&seen).nodes), (Class::Node, vec!["n1".to_string()]));
    let seen = Seen { verdicts: vec![lost], ..Default::default() };
    assert_eq!(classify(&seen).class, Class::Unknown);
}

#[test]
fn ranks_that_never_meet() {
    let seen = Seen { no_start_s: Some(20.0), ..Default::default() };
    assert!(seen.is_fault());
    assert_eq!((classify(&seen).class, classify(&seen).reason.as_str()), (Class::Unknown, "no_start"));
    let seen = Seen { no_state: Some((620.4, 400_000_000)), ..Default::default() };
    let found = classify(&seen);
    assert!(seen.is_fault() && found.class == Class::Unknown && found.reason == "no_state", "{found:?}");
    assert!(found.fact.contains("within 620 s") && found.fact.contains("400000000 bytes"), "{}", found.fact);
}

#[test]
fn a_node_that_is_late_is_not_yet_lost() {
    let late = Seen { late: vec!["n3".into()], ..said(&[]) };
    let found = classify(&late);
    assert!(late.is_fault() && !late.may_follow_from_a_lost_node());
    assert_eq!((found.class, found.reason.as_str(), found.nodes), (Class::Node, "no_answer", vec!["n3".to_string()]));
    // One that Slurm cannot reach either is.
    let lost = Seen { silent: vec!["n3".into()], ..late };
    assert_eq!((classify(&lost).reason.as_str(), classify(&lost).nodes.len()), ("node_lost", 1));
}
