use super::*;
use crate::config::AlertKind;

fn written(event: &RunEvent) -> String {
    line(event, Timestamp::UNIX_EPOCH, 7).unwrap().to_string()
}

/// An event, and its line as herd has always written it: scripts and older runs have such lines, in this order.
fn lines() -> Vec<(RunEvent, &'static str)> {
    use RunEvent::*;
    let control_plane = Traffic { messages: 1, bytes: 2, peers: 3 };
    let [why, error, reason, url] = ["w", "e", "r", "file:///s"].map(String::from);
    let failures = vec![Failure { time: Timestamp::UNIX_EPOCH, job: 3, attempt: 1, reason: reason.clone() }];
    let nodes = vec!["n1".to_string()];
    let validation = |validation_loss, validation_accuracy, corpora| Validation {
        step: 5,
        validation_loss,
        validation_accuracy,
        corpora,
    };
    let tiers = Tally { node: 1, node_partner: 2, remote: 3, remote_partner: 4, disk: 5 };
    vec![
        (
            Launch { job: 3, restarts: 1, nodes: "n[1-2]".into() },
            r#""attempt":7,"job":3,"restarts":1,"nodes":"n[1-2]""#,
        ),
        (
            AttemptStarted { attempt: 8, nodes: "n1,n2".into(), spares: "n3".into(), world: 4 },
            r#""attempt":8,"nodes":"n1,n2","spares":"n3","world":4"#,
        ),
        (
            Fault {
                attempt: 8,
                step: 5,
                class: Some(Class::StopAt),
                reason: reason.clone(),
                fact: "f".into(),
                nodes: nodes.clone(),
                ranks: vec![1],
            },
            r#""attempt":8,"step":5,"class":"stop_at","reason":"r","fact":"f","nodes":["n1"],"ranks":[1]"#,
        ),
        (
            Recovered { attempt: 8, step: 6, resumed_at: 5, steps_lost: 2, seconds: 1.5 },
            r#""attempt":8,"step":6,"resumed_at":5,"steps_lost":2,"seconds":1.5"#,
        ),
        (NoAnswer { nodes: nodes.clone(), attempt: 8 }, r#""attempt":8,"nodes":["n1"]"#),
        (
            NodeGivenUp { node: "n1".into(), failures },
            r#""attempt":7,"node":"n1","failures":[{"time":"1970-01-01T00:00:00Z","job":3,"attempt":1,"reason":"r"}]"#,
        ),
        (SkipBatch { step: 5 }, r#""attempt":7,"step":5"#),
        (
            Shrunk { replicas: 1, before: 2, nodes: nodes.clone() },
            r#""attempt":7,"replicas":1,"before":2,"nodes":["n1"]"#,
        ),
        (AskedToStop { attempt: 8 }, r#""attempt":8"#),
        (
            SupervisorRestarted { signal: 9, starts: 1, attempt: 8, srun: 4, node: "n1".into() },
            r#""attempt":8,"signal":9,"starts":1,"srun":4,"node":"n1""#,
        ),
        (TakenOver { job: 3, lost: "n1".into(), by: "n2".into() }, r#""attempt":7,"job":3,"lost":"n1","by":"n2""#),
        (
            Flush { nodes: nodes.clone(), without: vec![], result: reason.clone() },
            r#""attempt":7,"nodes":["n1"],"without":[],"result":"r""#,
        ),
        (GaveBack { nodes: nodes.clone(), result: reason.clone() }, r#""attempt":7,"nodes":["n1"],"result":"r""#),
        (Requeue { job: "3".into(), why: why.clone(), by: None }, r#""attempt":7,"job":"3","why":"w""#),
        (
            Requeue { job: "3".into(), why: why.clone(), by: Some("slurm".into()) },
            r#""attempt":7,"job":"3","why":"w","by":"slurm""#,
        ),
        (
            NotRequeued { job: "3".into(), state: "CANCELLED".into(), why: why.clone() },
            r#""attempt":7,"job":"3","state":"CANCELLED","why":"w""#,
        ),
        (
            Successor { job: "4".into(), exclude: nodes.clone(), why: why.clone() },
            r#""attempt":7,"job":"4","exclude":["n1"],"why":"w""#,
        ),
        (
            Alert { about: Some(AlertKind::NodeGivenUp), by: "command".into(), failure: None },
            r#""attempt":7,"about":"node_given_up","by":"command","failure":null"#,
        ),
        (LaunchEnded { exit: 40, why: why.clone() }, r#""attempt":7,"exit":40,"why":"w""#),
        (
            ConfigChanged { keys: vec!["optim.lr: 1 → 2".into()], file: "/r/f".into() },
            r#""attempt":7,"keys":["optim.lr: 1 → 2"],"file":"/r/f""#,
        ),
        (Met { world: 4 }, r#""attempt":7,"world":4"#),
        (Restoring { bytes: 9 }, r#""attempt":7,"bytes":9"#),
        (SlurmJob { job: 3, restarts: 0, nodes: "n1".into() }, r#""attempt":7,"job":3,"restarts":0,"nodes":"n1""#),
        (CheckpointRejected { path: "/c".into(), reason: reason.clone() }, r#""attempt":7,"path":"/c","reason":"r""#),
        (SnapshotRejected { step: 5, reason: reason.clone() }, r#""attempt":7,"step":5,"reason":"r""#),
        (Start { world: 4, weights: None }, r#""attempt":7,"world":4,"weights":null"#),
        (
            Resume { step: 5, path: None, tiers, snapshots_opened: 1, from_attempt: 6, seconds: 0.25 },
            r#""attempt":7,"step":5,"path":null,"tiers":{"node":1,"node_partner":2,"remote":3,"remote_partner":4,"disk":5},"snapshots_opened":1,"from_attempt":6,"seconds":0.25"#,
        ),
        (DataChanged { changes: vec!["c".into()] }, r#""attempt":7,"changes":["c"]"#),
        (validation(Some(2.5), None, Vec::new()), r#""attempt":7,"step":5,"validation_loss":2.5"#),
        (
            Evaluation { step: 5, task: "t".into(), rows: 4, measures: [("acc".to_string(), Some(0.5))].into() },
            r#""attempt":7,"step":5,"task":"t","rows":4,"measures":{"acc":0.5}"#,
        ),
        (validation(None, None, Vec::new()), r#""attempt":7,"step":5,"validation_loss":null"#),
        (
            validation(
                Some(2.5),
                Some(0.5),
                vec![CorpusLoss { path: "a".into(), loss: Some(2.5), accuracy: None, tokens: 9 }],
            ),
            r#""attempt":7,"step":5,"validation_loss":2.5,"validation_accuracy":0.5,"corpora":[{"path":"a","loss":2.5,"accuracy":null,"tokens":9}]"#,
        ),
        (
            SkippedStep { step: 5, loss: Some("NaN".into()), grad_norm: Some("inf".into()), why: None },
            r#""attempt":7,"step":5,"loss":"NaN","grad_norm":"inf""#,
        ),
        (
            SkippedStep { step: 5, loss: None, grad_norm: None, why: Some("train.skip_steps".into()) },
            r#""attempt":7,"step":5,"why":"train.skip_steps""#,
        ),
        (
            Finished { step: 5, control_plane },
            r#""attempt":7,"step":5,"control_plane":{"messages":1,"bytes":2,"peers":3}"#,
        ),
        (
            Stopped { step: 5, control_plane },
            r#""attempt":7,"step":5,"control_plane":{"messages":1,"bytes":2,"peers":3}"#,
        ),
        (
            Checkpoint { step: 5, path: "/c".into(), bytes: 9, seconds: 0.5 },
            r#""attempt":7,"step":5,"path":"/c","bytes":9,"seconds":0.5"#,
        ),
        (CheckpointFailed { step: 5, error: error.clone() }, r#""attempt":7,"step":5,"error":"e""#),
        (
            CheckpointSlow { step: 5, running: 4, save_s: 1.5, interval_s: 0.5 },
            r#""attempt":7,"step":5,"running":4,"save_s":1.5,"interval_s":0.5"#,
        ),
        (PruneFailed { error: error.clone() }, r#""attempt":7,"error":"e""#),
        (SnapshotSkipped { step: 5, skipped: 2 }, r#""attempt":7,"step":5,"skipped":2"#),
        (PartnerFailed { error: error.clone() }, r#""attempt":7,"error":"e""#),
        (NoSecondCopy { error: error.clone() }, r#""attempt":7,"error":"e""#),
        (NoSnapshots { error: error.clone() }, r#""attempt":7,"error":"e""#),
        (OldSnapshotsRemoved { dir: "/m".into() }, r#""attempt":7,"dir":"/m""#),
        (
            Export { step: 5, path: "/x".into(), bytes: 9, seconds: 0.5 },
            r#""attempt":7,"step":5,"path":"/x","bytes":9,"seconds":0.5"#,
        ),
        (ExportFailed { step: 5, error: error.clone() }, r#""attempt":7,"step":5,"error":"e""#),
        (ExportSkipped { step: 5, newer: 6 }, r#""attempt":7,"step":5,"newer":6"#),
        (ExportPending {}, r#""attempt":7"#),
        (
            Upload { step: 5, url: url.clone(), bytes: 9, sent: 8, seconds: 0.5, attempts: 1 },
            r#""attempt":7,"step":5,"url":"file:///s","bytes":9,"sent":8,"seconds":0.5,"attempts":1"#,
        ),
        (
            UploadFailed { step: 5, url: url.clone(), error, attempts: 3 },
            r#""attempt":7,"step":5,"url":"file:///s","error":"e","attempts":3"#,
        ),
        (UploadSkipped { step: 5, newer: 6 }, r#""attempt":7,"step":5,"newer":6"#),
        (UploadPending { step: 5, url: url.clone() }, r#""attempt":7,"step":5,"url":"file:///s""#),
        (RemotePruned { url: url.clone(), steps: vec![1, 2] }, r#""attempt":7,"url":"file:///s","steps":[1,2]"#),
        (
            Fetched { step: 5, url: url.clone(), path: "/c".into() },
            r#""attempt":7,"step":5,"url":"file:///s","path":"/c""#,
        ),
        (
            RemoteRejected { step: 5, url: url.clone(), reason: reason.clone() },
            r#""attempt":7,"step":5,"url":"file:///s","reason":"r""#,
        ),
        (StorePassedOver { url, reason: reason.clone() }, r#""attempt":7,"url":"file:///s","reason":"r""#),
        (
            Verdict { reason, ranks: vec![1], nodes, step: 5, phase: "reduce".into(), by: 0, fact: "f".into() },
            r#""attempt":7,"reason":"r","ranks":[1],"nodes":["n1"],"step":5,"phase":"reduce","by":0,"fact":"f""#,
        ),
        (SlowRank { rank: 1, own_s: 1.5, median_s: 0.5 }, r#""attempt":7,"rank":1,"own_s":1.5,"median_s":0.5"#),
        (
            Drill { fault: "slow".into(), code: None, seconds: Some(Some(0.5)), steps: Some(2), rank: 1, step: 5 },
            r#""attempt":7,"fault":"slow","seconds":0.5,"steps":2,"rank":1,"step":5"#,
        ),
        (
            Drill { fault: "exit".into(), code: Some(3), seconds: None, steps: None, rank: 1, step: 5 },
            r#""attempt":7,"fault":"exit","code":3,"rank":1,"step":5"#,
        ),
    ]
}

#[test]
fn lines_are_what_they_have_been_and_are_read_back() {
    let mut kinds = std::collections::BTreeSet::new();
    for (event, rest) in lines() {
        let text = written(&event);
        let kind = serde_json::to_value(&event).unwrap()["kind"].as_str().unwrap().to_string();
        assert_eq!(text, format!("{{\"time\":\"1970-01-01T00:00:00.000Z\",\"kind\":\"{kind}\",{rest}}}"));
        let read = LoggedEvent::read(serde_json::from_str(&text).unwrap()).unwrap();
        assert_eq!((read.kind(), read.time), (&kind[..], Some(Timestamp::UNIX_EPOCH)));
        assert_eq!(read.event, Some(event));
        kinds.insert(kind);
    }
    assert_eq!(kinds.len(), kinds::GROUPS.iter().map(|g| g.1).sum::<usize>(), "every kind has a line here");
}

/// A stop without end has always said so.
#[test]
fn a_drilled_stop_names_its_seconds() {
    let stop = RunEvent::Drill { fault: "stop".into(), code: None, seconds: Some(None), steps: None, rank: 1, step: 5 };
    assert!(written(&stop).ends_with(r#""attempt":7,"fault":"stop","seconds":null,"rank":1,"step":5}"#));
}

#[test]
fn lines_of_other_herds_are_read_as_far_as_they_are_known() {
    let read = |line: Value| LoggedEvent::read(line);
    // fields that were not there yet, and such as are not there any more
    let old = read(json!({ "kind": "resume", "step": 4, "gone": true })).unwrap();
    assert!(matches!(old.event, Some(RunEvent::Resume { step: 4, path: None, .. })) && old.attempt.is_none());
    // a class that is not known yet
    let new = read(json!({ "kind": "fault", "class": "comet", "fact": "f" })).unwrap();
    assert!(matches!(new.event, Some(RunEvent::Fault { class: None, fact, .. }) if fact == "f"));
    for (line, kind) in [(json!({ "kind": "eclipse", "step": 1 }), "eclipse"), (json!({ "step": 1 }), "unknown")] {
        let other = read(line.clone()).unwrap();
        assert_eq!((other.kind(), other.event.clone(), other.line.clone()), (kind, None, line));
    }
    assert!(read(json!([1])).is_none());
}

#[test]
fn events_have_a_time_a_kind_and_an_attempt() {
    let dir = tempfile::tempdir().unwrap();
    Events::open(dir.path()).unwrap().write(&RunEvent::SkipBatch { step: 7 }).unwrap();
    Events::open(dir.path()).unwrap().write(&RunEvent::ExportPending {}).unwrap();
    let text = std::fs::read_to_string(RunDir::new(dir.path()).events()).unwrap();
    let v: Vec<Value> = text.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    assert!(v[0]["time"].as_str().unwrap().parse::<Timestamp>().is_ok());
    assert!(v[0]["kind"] == "skip_batch" && v[0]["step"] == 7 && v[1]["kind"] == "export_pending");
    assert_eq!(v[1]["attempt"], attempt::current());
}

#[test]
fn an_older_attempt_appends_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let mut events = Events::open(dir.path()).unwrap();
    attempt::announce(dir.path(), attempt::current() + 1, true).unwrap();
    assert_eq!(events.write(&RunEvent::ExportPending {}).unwrap_err().exit, Exit::Fenced);
    assert_eq!(std::fs::read(RunDir::new(dir.path()).events()).unwrap(), b"");
}

#[test]
fn what_somebody_should_look_at_has_words() {
    for (event, _) in lines() {
        assert!(!event.is_warning() || event.words().is_some(), "{event:?}");
    }
    let saved = RunEvent::Checkpoint { step: 5, path: "/c".into(), bytes: 1_500_000, seconds: 0.5 };
    assert_eq!(saved.words().unwrap(), "saved /c, 1.50 MB in 0.50 s");
}
