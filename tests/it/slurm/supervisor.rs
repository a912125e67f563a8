//! Faults of what is around the ranks: the supervisor is killed, the run directory is moved away, files are rotated.

use super::cluster::*;
use super::recovery::{kill_rank, submit, wait_for_recovery};
use super::training::*;
use herd::error::Exit;
use std::time::Duration;

/// SIGKILL to the supervisor of a run, and not to its parent or standby.
fn kill_supervisor(cluster: &Cluster, run: &Run) {
    let find = format!("for p in /proc/[0-9]*; do tr '\\0' ' ' <$p/cmdline 2>/dev/null | grep -v standby | grep -q '^/[^ ]*herd launch' && \
         readlink $p/cwd | grep -qx {} && kill -9 ${{p#/proc/}}; done; true",
        run.path().display());
    cluster.on("herd1", &find);
}

/// The ranks train on without a supervisor; the next one notices that a rank dies; and then a run directory that is gone costs neither
/// the state nor the nodes' time.
#[test]
fn a_supervisor_that_is_killed_comes_back_and_a_run_directory_that_is_gone_is_rescued() {
    let cluster = Cluster::up(&["--nodes", "4", "--cred-expire", "5"]);
    let rescue = ["--set", "launch.rescue_dir=rescue", "--set", "checkpoint.snapshot_every=1"];
    let run = Run::new(1_000_000);
    let job = submit(&run, &cluster, &rescue);
    run.reaches(&cluster, &job, 20);
    kill_supervisor(&cluster, &run);
    wait_until("the next supervisor", Duration::from_secs(30), || run.events("supervisor_restarted").len() == 1);
    let found = &run.events("supervisor_restarted")[0];
    assert!(found["signal"] == 9 && found["attempt"] == 1, "{found}");
    assert_eq!(run.events("attempt_started").len(), 1, "the ranks train on");
    assert!(run.said().contains("ended by signal 9; it is started again"), "{}", run.said());
    kill_rank(&cluster, "herd2", &run);
    wait_for_recovery(&run, 1);
    assert_eq!(run.events("fault")[0]["nodes"][0], "herd2");
    assert_whole_so_far(&run);

    let at = |name: &str| run.path().join(name);
    for name in ["metrics.jsonl", "events.jsonl"] {
        std::fs::rename(at("run").join(name), at("run").join(format!("{name}.1"))).unwrap();
    }
    wait_until("the new file", Duration::from_secs(30), || at("run/metrics.jsonl").exists());
    assert!(run.said().contains("metrics.jsonl was moved or removed"), "{}", run.said());

    std::fs::rename(at("run"), at("moved")).unwrap();
    wait_until("the end of the job", Duration::from_secs(60), || ended(&cluster, &job));
    let said = run.said();
    assert_eq!(run.ends(&cluster, &job), Exit::Gone.code(), "{said}");
    assert!(!at("run").exists(), "nobody made it again");
    let saved: Vec<_> = std::fs::read_dir(at("rescue/run/checkpoints")).unwrap().flatten().map(|e| e.path()).collect();
    assert!(saved.len() == 1 && said.contains("run is gone: step"), "{saved:?}: {said}");
    let verify = crate::support::herd().args(["checkpoint", "verify"]).arg(&saved[0]).output().unwrap();
    assert!(verify.status.success(), "{}", crate::support::text(&verify));
}
