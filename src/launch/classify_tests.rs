//! What each kind of end means.

use super::*;
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

fn said(lines: &[&str]) -> Seen {
    let said = lines.iter().map(|l| messages::parse(&format!("srun: error: {l}")).unwrap()).collect();
    Seen { said, code: Some(143), ..Default::default() }
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
        (&["n1: task 0: Exited with exit code 10"], Class::User, "", "code_10"),
        (
            &["n1: task 0: Exited with exit code 31", "n2: task 1: Exited with exit code 14"],
            Class::Node,
            "n2",
            "code_14",
        ),
        (&["n1: task 0: Exited with exit code 31"], Class::Unknown, "", "code_31"),
        (&["n1: task 0: Exited with exit code 21"], Class::Storage, "", "code_21"),
        (&["n1: task 0: Exited with exit code 1"], Class::Process, "n1", "code_1"),
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
    assert_eq!(classify(&said(&["n1: task 0: Exited with exit code 10"])).exit, Exit::Config);
    assert!(!said(&["n1: task 0: Terminated"]).is_fault(), "srun's end will say more");
    // A signal to all of a job's processes makes srun kill the step before the ranks have saved: no node's fault.
    let killed = classify(&Seen { asked: true, code: Some(137), ..said(&["n[1-2]: tasks 0-1: Killed"]) });
    assert_eq!((killed.class, killed.nodes.len()), (Class::Unknown, 0));
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
}
