//! `herd doctor` on four nodes: healthy ones are green, and each fault, made for real on one of them, is named and nothing else.

use super::cluster::*;
use crate::support::{herd, text};
use crate::train::Run;
use herd::error::Exit;
use serde_json::{json, Value};
use std::io::Write;
use std::path::{Path, PathBuf};

/// Longer than slurmd needs and shorter than a healthy limit.
const FEW_FILES: &str = "128:128";

/// How a row of the doctor's is compared: light, name, who.
type Row = (String, String, String);

fn red(name: &str, who: &str) -> Row {
    ("red".to_string(), name.to_string(), who.to_string())
}

/// Asserts that what was found is what was made, and leaves both in the file that HERD_DOCTOR_OUT names (benchmarks/doctor.py).
#[track_caller]
fn judge(mut found: Vec<Row>, mut made: Vec<Row>) {
    found.sort();
    made.sort();
    told(json!({ "made": made, "found": found }));
    assert_eq!(found, made);
}

fn told(line: Value) {
    if let Some(path) = std::env::var_os("HERD_DOCTOR_OUT") {
        let mut file = std::fs::OpenOptions::new().create(true).append(true).open(path).unwrap();
        writeln!(file, "{line}").unwrap();
    }
}

/// A run whose directory lies in a folder that can be taken from a node.
struct Lab {
    cluster: Cluster,
    run: Run,
}

impl Lab {
    fn new(options: &[&str]) -> Lab {
        let settings = ["--set", "KillWait=30", "--set", "PropagateResourceLimits=NONE"];
        let cluster = Cluster::up(&[&["--nodes", "4"], &settings[..], options].concat());
        let run = Run::new();
        std::fs::create_dir_all(run.path("shared/run")).unwrap();
        Lab { cluster, run }
    }

    /// What the doctor says from a batch script, and its exit code.
    fn examine(&self) -> (Value, i32) {
        let (log, script) = (self.run.path("job.log"), self.run.path("job.sh"));
        let program = PathBuf::from(herd().get_program());
        let run_dir = self.run.path("shared/run");
        let line = format!(
            "#!/bin/bash\n{} doctor {} --json --set run_dir={}\necho \"code $?\"\n",
            program.display(),
            self.run.config().display(),
            run_dir.display()
        );
        std::fs::write(&script, line).unwrap();
        let mut c =
            self.cluster.command("run", &["sbatch", "--wait", "-N4", "--ntasks-per-node=1", "--no-kill", "--requeue"]);
        c.arg("--output").arg(&log).arg(&script);
        // what herd must set itself stays out
        let out = c.env_remove("SLURM_PMIX_FENCE").output().unwrap();
        assert!(out.status.success(), "{}", text(&out));
        let said = std::fs::read_to_string(&log).unwrap();
        let (begin, end) =
            (said.find("\n{").map_or(0, |at| at + 1), said.find("\n}").unwrap_or_else(|| panic!("{said}")));
        let value = serde_json::from_str(&said[begin..end + 2]).unwrap_or_else(|e| panic!("{e}: {said}"));
        let code = said.rsplit("code ").next().and_then(|c| c.trim().parse().ok()).unwrap_or_else(|| panic!("{said}"));
        (value, code)
    }

    /// The red and amber rows: light, name, who; of what is timed only the red ones, since the nodes share this machine's cores.
    fn found(&self) -> Vec<Row> {
        let (d, code) = self.examine();
        told(json!({ "seconds": d["seconds"], "parts": d["parts"] }));
        let timed = |c: &Value| {
            ["links", "cpu speed", "memory speed", "storage speed", "start"].contains(&c["name"].as_str().unwrap())
        };
        let bad = |c: &&Value| c["light"] == "red" || (c["light"] == "amber" && !timed(c));
        let rows: Vec<&Value> = d["checks"].as_array().unwrap().iter().filter(bad).collect();
        rows.iter().for_each(|c| eprintln!("  {c}"));
        let red = rows.iter().any(|c| c["light"] == "red");
        assert_eq!(code, if red { Exit::Unhealthy.code() } else { 0 }, "{d:#}");
        assert!(rows.iter().all(|c| c["cure"].is_string()));
        let text = |v: &Value| v.as_str().unwrap_or_default().to_string();
        let names = |v: &Value| v.as_array().into_iter().flatten().map(text).collect::<Vec<_>>().join(",");
        let who = |c: &Value| if c["link"].is_array() { names(&c["link"]) } else { names(&c["nodes"]) };
        rows.into_iter().map(|c| (text(&c["light"]), text(&c["name"]), who(c))).collect()
    }

    /// Makes these faults, each on a node of its own, has them found there and nothing else, and takes them back. At once, or one
    /// after the other where HERD_DOCTOR_IN_TURN is set.
    fn faults(&self, all: &[Fault]) {
        let at_a_time = if std::env::var_os("HERD_DOCTOR_IN_TURN").is_some() { 1 } else { all.len() };
        for some in all.chunks(at_a_time) {
            some.iter().for_each(|f| _ = self.cluster.on(f.node, &f.make));
            let found = self.found();
            some.iter().for_each(|f| _ = self.cluster.on(f.node, &f.undo));
            judge(found, some.iter().map(|f| red(f.name, f.node)).collect());
        }
    }
}

/// A fault of one node: how it is made and taken back there, and the check that names it.
struct Fault {
    node: &'static str,
    make: String,
    undo: String,
    name: &'static str,
}

fn fault(node: &'static str, make: impl Into<String>, undo: impl Into<String>, name: &'static str) -> Fault {
    Fault { node, make: make.into(), undo: undo.into(), name }
}

/// The libtorch that the binary under test has loaded.
fn libtorch() -> PathBuf {
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    let line = maps.lines().find(|l| l.contains("libtorch_cpu.so")).unwrap();
    PathBuf::from(&line[line.find('/').unwrap()..])
}

/// A copy with a byte more.
fn longer(from: &Path, to: &Path) -> PathBuf {
    std::fs::copy(from, to).unwrap();
    let mut f = std::fs::OpenOptions::new().append(true).open(to).unwrap();
    f.write_all(b"\0").unwrap();
    to.to_path_buf()
}

fn ledger(run: &Run) -> Value {
    let text = std::fs::read_to_string(run.path("shared/run/ledger.json")).unwrap_or_else(|_| "{}".into());
    serde_json::from_str(&text).unwrap()
}

#[test]
fn each_fault_is_named_and_nothing_else() {
    let lab = Lab::new(&[]);
    if !lab.cluster.has_namespaces() {
        return eprintln!("SKIPPED: without namespaces no node has files or links of its own");
    }
    assert_eq!(lab.found(), [], "healthy");
    assert!(!lab.run.path("shared/run/ledger.json").exists(), "nobody is to blame");

    let bind = |from: &Path, to: &Path| format!("mount --bind {} {}", from.display(), to.display());
    let off = |path: &Path| format!("umount {}", path.display());
    let (run, shared) = (&lab.run, lab.run.path("shared"));
    let at = shared.display();
    let torch = libtorch();
    let other = longer(&torch, &run.path("libtorch_other.so"));
    let hosts = run.path("hosts");
    let known = lab.cluster.on("herd1", "cat /etc/hosts");
    let without: String = known.lines().filter(|l| !l.contains("herd2")).map(|l| format!("{l}\n")).collect();
    std::fs::write(&hosts, without).unwrap();
    lab.faults(&[
        fault("herd2", bind(&other, &torch), off(&torch), "libtorch"),
        fault("herd3", format!("mount -t tmpfs tmpfs {at}"), off(&shared), "storage"),
        fault("herd4", "mount -t tmpfs -o size=1m tmpfs /dev/shm", "umount /dev/shm", "shared memory"),
        fault("herd1", bind(&hosts, Path::new("/etc/hosts")), "umount /etc/hosts", "names"),
    ]);
    std::fs::remove_file(&other).unwrap();
    let entry = &ledger(run)["nodes"]["herd2"];
    assert_eq!(entry["failures"][0]["reason"], "doctor: libtorch", "{entry}");
    // in turn, the next examination has found it good already
    assert!(entry["paused_until"].is_string() || std::env::var_os("HERD_DOCTOR_IN_TURN").is_some(), "{entry}");
    // a healthy examination takes it back
    assert_eq!(lab.found(), []);
    assert!(ledger(run)["nodes"]["herd2"].get("paused_until").is_none());

    let program = PathBuf::from(herd().get_program()).canonicalize().unwrap();
    let other = longer(&program, &run.path("herd-other"));
    let read_only = format!("mount --bind {at} {at} && mount -o remount,ro,bind {at}");
    lab.faults(&[
        fault("herd4", bind(&other, &program), off(&program), "herd"),
        fault("herd2", read_only, off(&shared), "storage"),
    ]);
    let apart = format!("mount -t tmpfs tmpfs {at} && mkdir {at}/run");
    let full = format!(
        "mount -t tmpfs -o size=1m tmpfs {at} && mkdir {at}/run && ! head -c 2m /dev/zero >{at}/fill 2>/dev/null"
    );
    let config = run.path("other.yaml");
    std::fs::write(&config, std::fs::read_to_string(run.config()).unwrap() + "# another\n").unwrap();
    // not every container may raise a limit again: the last fault stays
    let few = format!("for p in $(pgrep slurmd); do prlimit --pid $p --nofile={FEW_FILES}; done");
    lab.faults(&[
        fault("herd1", apart, off(&shared), "storage seen"),
        fault("herd3", full, off(&shared), "storage"),
        fault("herd2", bind(&config, &run.config()), off(&run.config()), "configuration"),
        fault("herd4", few, "true", "limits"),
    ]);
}

#[test]
fn slow_nodes_and_links_are_told_apart() {
    let lab = Lab::new(&["--skew", "herd3=+3"]);
    if !lab.cluster.has_namespaces() {
        return eprintln!("SKIPPED: without namespaces no node has a clock or links of its own");
    }
    // in the order of the judges: the clock is wrong all the time
    let clock = red("clock", "herd3");
    lab.cluster.on("herd2", "tc qdisc add dev eth0 root tbf rate 50mbit burst 64k latency 100ms");
    let found = lab.found();
    lab.cluster.on("herd2", "tc qdisc del dev eth0 root");
    judge(found, vec![clock.clone(), red("links", "herd2")]);
    let link = "tc qdisc add dev eth0 root handle 1: htb default 10 && \
                tc class add dev eth0 parent 1: classid 1:10 htb rate 40gbit quantum 60000 && \
                tc class add dev eth0 parent 1: classid 1:20 htb rate 50mbit && \
                tc filter add dev eth0 parent 1: protocol ip u32 match ip dst 10.77.0.14 flowid 1:20";
    lab.cluster.on("herd2", link);
    let found = lab.found();
    lab.cluster.on("herd2", "tc qdisc del dev eth0 root");
    judge(found, vec![clock.clone(), red("links", "herd2,herd4")]);
    let group = "/sys/fs/cgroup/cpu";
    if !Path::new(group).join("cpu.cfs_quota_us").exists() && !Path::new(group).exists() {
        return eprintln!("SKIPPED: no CPU control group here to hold a node down by");
    }
    let name = format!("{group}/herd-doctor-{}", std::process::id());
    std::fs::create_dir(&name).unwrap();
    std::fs::write(format!("{name}/cpu.cfs_quota_us"), "10000").unwrap();
    let join = |group: &str| format!("for p in $(pgrep slurmd); do echo $p >{group}/cgroup.procs; done");
    lab.cluster.on("herd4", &join(&name));
    let found = lab.found();
    lab.cluster.on("herd4", &join(group));
    let _ = std::fs::remove_dir(&name);
    let (slow, others): (Vec<_>, Vec<_>) = found.into_iter().partition(|(_, _, who)| who == "herd4");
    assert!(slow.contains(&red("cpu speed", "herd4")), "{slow:?}");
    // a node that is held down is slow in more than one thing
    judge([others, vec![red("cpu speed", "herd4")]].concat(), vec![clock, red("cpu speed", "herd4")]);
}

/// One node does not start herd at all, another does not answer: both are named, without MPI.
#[test]
fn nodes_that_do_not_come_are_named() {
    let lab = Lab::new(&[]);
    if !lab.cluster.has_namespaces() {
        return eprintln!("SKIPPED: without namespaces no node can be cut off");
    }
    let torch = libtorch();
    lab.cluster.on("herd2", &format!("mount --bind /dev/null {}", torch.display()));
    lab.cluster.ok("cut", &["herd4"]);
    let found = lab.found();
    judge(found, vec![red("start", "herd2"), red("answer", "herd4")]);
}

/// No false alarm, however often: HERD_DOCTOR_HEALTHY times, else once.
#[test]
fn healthy_nodes_are_green() {
    let times = std::env::var("HERD_DOCTOR_HEALTHY").ok().map_or(1, |n| n.parse().unwrap());
    let lab = Lab::new(&[]);
    for _ in 0..times {
        judge(lab.found(), vec![]);
    }
}
