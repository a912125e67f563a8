//! Starts of the ranks that cannot succeed: a command line that srun refuses, a plugin that Slurm does not have, a node on
//! which the program does not start. And what a start goes by: the job's environment, tasks and configuration.

use super::cluster::*;
use super::recovery::{submit, wait_for_recovery};
use super::training::*;
use herd::error::Exit;
use std::path::PathBuf;

/// srun's own words, after one start, and nothing is tried again.
#[test]
fn a_command_line_that_srun_refuses_stops_the_run_at_once() {
    let cluster = Cluster::up(&["--nodes", "4", "--cred-expire", "5"]);
    let run = Run::new(1000);
    let job = submit(&run, &cluster, &["--set", "launch.srun=['--no-such-option']"]);
    assert_eq!(run.ends(&cluster, &job), Exit::World.code(), "{}", run.said());
    let faults = run.events("fault");
    assert_eq!((faults.len(), run.events("attempt_started").len(), run.events("requeue").len()), (1, 1, 0));
    let fact = faults[0]["fact"].as_str().unwrap();
    assert!(faults[0]["reason"] == "srun_refused" && fact.contains("no-such-option"), "{fact}");
    assert!(!run.path().join("run/ledger.json").exists(), "no node is to blame");

    let run = Run::new(1000);
    let job = submit(&run, &cluster, &["--set", "launch.mpi=carrier_pigeon"]);
    assert_eq!(run.ends(&cluster, &job), Exit::World.code(), "{}", run.said());
    assert!(
        run.said().contains("launch.mpi is carrier_pigeon") && run.said().contains("srun --mpi=list"),
        "{}",
        run.said()
    );
    assert_eq!(run.events("attempt_started").len(), 0);
}

/// The first spare has another file where the others have herd: the next spare is taken at once, and only the unfit is blamed.
#[test]
fn a_spare_that_cannot_run_the_ranks_is_passed_over() {
    let cluster = Cluster::up(&["--nodes", "5", "--set", "SlurmdTimeout=15", "--cred-expire", "5"]);
    if !cluster.has_namespaces() {
        eprintln!("skipped: without namespaces all nodes have the same files");
        return;
    }
    let run = Run::new(1_000_000);
    let broken = run.path().join("broken");
    std::fs::write(&broken, b"\x7fELF of another machine").unwrap();
    std::fs::set_permissions(&broken, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let herd = PathBuf::from(crate::support::herd().get_program());
    cluster.on("herd4", &format!("mount --bind {} {}", broken.display(), herd.display()));
    let job = run.submit(&cluster, &["-N5"], &[super::recovery::THREE, &["--set", "launch.no_progress=1"]].concat());
    run.reaches(&cluster, &job, 20);
    cluster.ok("kill", &["herd2"]);
    wait_for_recovery(&run, 1);
    let faults = run.events("fault");
    let blamed: Vec<_> = faults.iter().map(|f| (f["reason"].clone(), f["nodes"][0].clone())).collect();
    assert_eq!(blamed.len(), 2, "{faults:?}");
    assert!(blamed[0].1 == "herd2" && blamed[1] == ("cannot_run".into(), "herd4".into()), "{faults:?}");
    let nodes: Vec<_> = run.events("attempt_started").iter().map(|e| e["nodes"].clone()).collect();
    assert_eq!(nodes, ["herd1,herd2,herd3", "herd1,herd4,herd3", "herd1,herd5,herd3"]);
    cluster.run(&format!("scancel {job}"));
    wait_until("the job is cancelled", std::time::Duration::from_secs(60), || ended(&cluster, &job));
}

/// A job of two nodes that says `--ntasks=4` and nothing else, on a site that submits with --export=NONE; then the
/// configuration is edited while it runs, and a rank dies.
#[test]
fn a_start_goes_by_what_was_submitted() {
    let cluster = Cluster::up(&["--nodes", "2", "--cred-expire", "5"]);
    let options = ["-N2", "--ntasks=4", "--ntasks-per-node=2", "--export=ALL,SLURM_EXPORT_ENV=NONE"];
    let four = ["--set", "parallel.data=4", "--set", "batch={global: 8, micro: 2}", "--set", "liveness.interval_s=1"];
    let whole = Run::new(1000);
    let job = whole.submit(&cluster, &options, &four);
    assert_eq!(whole.ends(&cluster, &job), 0, "{}", whole.said());
    assert_eq!(whole.events("attempt_started")[0]["world"], 4);

    let run = Run::new(1000);
    let job = run.submit(&cluster, &options, &four);
    run.reaches(&cluster, &job, 20);
    let file = run.path().join("configs/llama3_demo.yaml");
    let text = std::fs::read_to_string(&file).unwrap();
    let edited = text.replace("steps: 1000", "steps: 900");
    assert_ne!(edited, text);
    std::fs::write(&file, edited).unwrap();
    super::recovery::kill_rank(&cluster, "herd2", &run);
    wait_for_recovery(&run, 1);
    cluster.run(&format!("scontrol requeue {job}"));
    assert_eq!(run.ends(&cluster, &job), 0, "{}", run.said());
    assert_eq!(run.losses().len(), 1000);
    assert_eq!(run.losses(), whole.losses());
    let said = run.said();
    assert!(said.contains("is not what job") && said.contains("train.steps: 1000 → 900"), "{said}");
}
