//! The cluster tool itself: ranks over nodes, nodes that are cut off, crash and come back, both forms, no leftovers.

use super::cluster::*;
use crate::support::{root, text};
use herd::error::Exit;
use herd::topology::{Axis, Topology};
use herd::wire::MakeWires;
use herd::world::{Op, World};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

#[test]
fn nodes_are_apart_and_leave_nothing_behind() {
    let before = interfaces();
    let start = Instant::now();
    let cluster = Cluster::up(&["--nodes", "4"]);
    assert!(start.elapsed() < Duration::from_secs(20), "up took {:?}", start.elapsed());
    assert_eq!(cluster.run("sinfo -h -N -t idle -o %N | sort | paste -sd,"), "herd1,herd2,herd3,herd4");
    if cluster.has_namespaces() {
        assert_eq!(cluster.run("srun -N4 hostname | sort | paste -sd,"), "herd1,herd2,herd3,herd4");
        cluster.on("herd1", "echo mine >/dev/shm/own");
        assert_eq!(cluster.on("herd2", "ls /dev/shm"), "");
        assert!(!Path::new("/dev/shm/own").exists());
        // Process 1 of a node is its own, and no other node's processes are seen from it.
        assert!(cluster.on("herd3", "tr '\\0' ' ' </proc/1/cmdline").ends_with("herd3 10.77.0.13"));
        assert_eq!(cluster.on("herd3", "cat /proc/[0-9]*/cmdline | grep -ac '[h]erd4' || true"), "0");
    }
    // Work under way does not hold up the end.
    cluster.run("sbatch -N2 --output=/dev/null --wrap 'srun sleep 600'");
    cluster.ok("down", &[]);
    assert_nothing_left(cluster.path(), &before);
    assert_eq!(cluster.output("status", &[]).status.code(), Some(3));
}

/// Four ranks on two nodes find each other through PMIx, know which share a node, and reduce over the network.
fn four_ranks_reduce() {
    let world = World::init().unwrap();
    assert_eq!((world.size(), world.local_size()), (4, 2));
    let wire = world.wire(&Topology::data(world.rank(), 4), Axis::Data).unwrap();
    let x = tch::Tensor::from_slice(&[world.rank() as f32, 1.0]);
    wire.all_reduce(&x, Op::Sum).unwrap().wait().unwrap();
    assert_eq!(Vec::<f32>::try_from(&x).unwrap(), [6.0, 4.0]);
    println!("rank {} on {}", world.rank(), world.host());
    drop(wire);
    world.finalize().unwrap();
}

/// One rank starts late: those of the other node must wait for it in MPI_Init (see `FENCE` in src/slurm/step.rs).
#[test]
fn ranks_meet_across_nodes() {
    if inside() {
        if std::env::var("SLURM_PROCID").unwrap() == "1" {
            std::thread::sleep(Duration::from_secs(1));
        }
        return four_ranks_reduce();
    }
    let cluster = Cluster::up(&[]);
    let out = cluster.srun(&["--mpi=pmix", "-N2", "--ntasks-per-node=2"], "slurm::nodes::ranks_meet_across_nodes");
    assert!(out.status.success(), "{}", text(&out));
    if cluster.has_namespaces() {
        for line in ["rank 0 on herd1", "rank 1 on herd1", "rank 2 on herd2", "rank 3 on herd2"] {
            assert!(text(&out).contains(line), "{line} is missing in\n{}", text(&out));
        }
    }
}

#[test]
fn srun_without_pmix_is_refused() {
    if inside() {
        let e = World::init().map(|_| ()).expect_err("a world without pmix");
        eprintln!("herd: error: {e}");
        std::process::exit(e.exit.code());
    }
    let cluster = Cluster::up(&[]);
    let out = cluster.srun(&["-N2"], "slurm::nodes::srun_without_pmix_is_refused");
    assert_eq!(out.status.code(), Some(Exit::World.code()), "{}", text(&out));
    assert!(text(&out).contains("srun --mpi=pmix"), "{}", text(&out));
}

/// Exit status of a TCP connection from `from` to the slurmd of the second node.
fn reaches_herd2(cluster: &Cluster, from: &str) -> bool {
    cluster.output("on", &[from, "timeout", "1", "bash", "-c", "exec 3<>/dev/tcp/herd2/6818"]).status.success()
}

#[test]
fn a_cut_node_is_silent_lives_on_and_heals() {
    let cluster = Cluster::up(&[]);
    if !cluster.has_namespaces() {
        let out = cluster.output("cut", &["herd2"]);
        assert!(!out.status.success() && text(&out).contains("no links to cut"), "{}", text(&out));
        return;
    }
    assert!(reaches_herd2(&cluster, "herd1"));
    cluster.on("herd2", "echo kept >/dev/shm/state");
    cluster.ok("cut", &["herd2"]);
    assert!(!reaches_herd2(&cluster, "herd1"));
    assert_eq!(cluster.on("herd2", "cat /dev/shm/state"), "kept");
    cluster.ok("heal", &["herd2"]);
    wait_until("the link is back", Duration::from_secs(10), || reaches_herd2(&cluster, "herd1"));
    assert_eq!(cluster.run("srun -w herd2 hostname"), "herd2");
    assert_eq!(cluster.on("herd2", "cat /dev/shm/state"), "kept");
}

#[test]
fn a_killed_node_loses_everything_and_boots_empty() {
    let cluster = Cluster::up(&["--set", "SlurmdTimeout=10"]);
    if cluster.has_namespaces() {
        cluster.on("herd2", "echo lost >/dev/shm/state");
    }
    let marker = "sleep 86399";
    cluster.run(&format!("sbatch -w herd2 --no-requeue --output=/dev/null --wrap 'srun {marker}'"));
    let tasks = || processes_of(cluster.path()).iter().filter(|line| line.contains("86399")).count();
    wait_until("the job runs", Duration::from_secs(20), || tasks() > 0);
    cluster.ok("kill", &["herd2"]);
    assert_eq!(tasks(), 0);
    let out = cluster.output("on", &["herd2", "true"]);
    assert!(!out.status.success() && text(&out).contains("is not up"), "{}", text(&out));
    // Slurm notices by itself and takes the job down with the node.
    wait_until("Slurm marks the node down", Duration::from_secs(60), || {
        cluster.run("sinfo -h -n herd2 -o %T").contains("down")
    });
    cluster.ok("boot", &["herd2"]);
    wait_until("the node is back", Duration::from_secs(30), || cluster.run("sinfo -h -n herd2 -o %T") == "idle");
    if cluster.has_namespaces() {
        assert_eq!(cluster.on("herd2", "ls /dev/shm"), "");
    }
    cluster.run("srun -w herd2 true");
}

#[test]
fn up_follows_an_unclean_end() {
    let before = interfaces();
    let cluster = Cluster::up(&[]);
    if cluster.has_namespaces() {
        let record = std::fs::read_to_string(cluster.path().join("head")).unwrap();
        let pid: i32 = record.split(' ').next().unwrap().parse().unwrap();
        assert!(processes_of(cluster.path()).len() > 3);
        // SAFETY: ends the first process of the cluster that this test made.
        assert_eq!(unsafe { libc::kill(pid, libc::SIGKILL) }, 0);
        assert_nothing_left(cluster.path(), &before);
    }
    // Without a `down` in between, whatever is left.
    cluster.ok("up", &["--nodes", "3"]);
    assert_eq!(cluster.run("srun -N3 true && sinfo -h -o %D"), "3");
    cluster.ok("down", &[]);
    assert_nothing_left(cluster.path(), &before);
}

#[test]
fn clusters_live_side_by_side() {
    let (one, two) = (Cluster::up(&["--nodes", "1"]), Cluster::up(&["--nodes", "2"]));
    assert_eq!(one.run("sinfo -h -o %D"), "1");
    assert_eq!(two.run("sinfo -h -o %D"), "2");
    one.ok("down", &[]);
    assert_eq!(two.run("srun -N2 echo up | sort -u"), "up");
}

/// Longer than the address of a Unix socket may be, with a space in it.
#[test]
fn the_directory_may_have_a_long_name() {
    let parent = tempfile::tempdir().unwrap();
    for form in ["namespaces", "simple"] {
        let dir = parent.path().join("a folder whose name is long ".repeat(5)).join(form);
        let tool = |args: &[&str]| {
            let mut c = Command::new(root().join("tests/cluster/cluster"));
            c.args(args).env("HERD_CLUSTER", &dir).stdin(Stdio::null()).output().unwrap()
        };
        let up = tool(&["up", "--nodes", "2", "--form", form]);
        let ran = tool(&["run", "srun", "-N2", "--mpi=pmix", "echo", "ran"]);
        tool(&["down"]);
        assert!(up.status.success(), "{}", text(&up));
        assert_eq!(String::from_utf8_lossy(&ran.stdout), "ran\nran\n", "{}", text(&ran));
    }
}

#[test]
fn the_simple_form_runs_ranks_and_ends_cleanly() {
    if inside() {
        return four_ranks_reduce_anywhere();
    }
    let before = interfaces();
    let cluster = Cluster::up(&["--form", "simple"]);
    let name = "slurm::nodes::the_simple_form_runs_ranks_and_ends_cleanly";
    let out = cluster.srun(&["--mpi=pmix", "-N2", "--ntasks-per-node=2"], name);
    assert!(out.status.success(), "{}", text(&out));
    let out = cluster.output("cut", &["herd1"]);
    assert!(text(&out).contains("no links to cut"), "{}", text(&out));
    cluster.run("sbatch -N2 --output=/dev/null --wrap 'srun sleep 600'");
    cluster.ok("kill", &["herd2"]);
    cluster.ok("boot", &["herd2"]);
    cluster.ok("down", &[]);
    assert_nothing_left(cluster.path(), &before);
}

/// As [`four_ranks_reduce`], where nodes share a host name and MPI may see all ranks on one.
fn four_ranks_reduce_anywhere() {
    let world = World::init().unwrap();
    assert_eq!(world.size(), 4);
    assert_eq!(world.all_reduce_f64(&[world.rank() as f64], Op::Sum).unwrap(), [6.0]);
    world.finalize().unwrap();
}

#[test]
fn wrong_use_of_the_tool_is_told() {
    let cluster = Cluster { dir: tempfile::tempdir().unwrap() };
    for (verb, args, words) in [
        ("up", &["--nodes", "none"][..], "whole number above 0"),
        ("up", &["--nodes"], "needs a value"),
        ("up", &["--set", "oops"], "KEY=VALUE"),
        ("up", &["--form", "cloud"], "namespaces or simple"),
        ("cut", &["herd1"], "no cluster is up"),
        ("fly", &[], "unknown verb"),
    ] {
        let out = cluster.output(verb, args);
        assert!(!out.status.success() && text(&out).contains(words), "{verb} {args:?}: {}", text(&out));
    }
    cluster.ok("up", &["--nodes", "1"]);
    let out = cluster.output("kill", &["herd7"]);
    assert!(!out.status.success() && text(&out).contains("no node herd7"), "{}", text(&out));
}
