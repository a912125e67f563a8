//! A private Slurm for one test, and what must be left of it afterwards: nothing.

use crate::support::{root, text};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

/// A cluster that ends with the value.
pub struct Cluster {
    pub dir: tempfile::TempDir,
}

impl Cluster {
    pub fn up(options: &[&str]) -> Cluster {
        let cluster = Cluster { dir: tempfile::tempdir().unwrap() };
        cluster.ok("up", options);
        cluster
    }

    pub fn command(&self, verb: &str, args: &[&str]) -> Command {
        let mut c = Command::new(root().join("tests/cluster/cluster"));
        c.arg(verb).args(args).env("HERD_CLUSTER", self.dir.path()).stdin(Stdio::null());
        // Ranks of a test that itself ran under Slurm or mpirun must not find those.
        for (name, _) in std::env::vars().filter(|(k, _)| k.starts_with("SLURM_") || k.starts_with("PMIX_")) {
            c.env_remove(name);
        }
        // As herd launch and the modulefile do.
        c.env("SLURM_PMIX_FENCE", "ring");
        c
    }

    pub fn output(&self, verb: &str, args: &[&str]) -> Output {
        self.command(verb, args).output().expect("tests/cluster/cluster starts")
    }

    /// Standard output of a verb that must succeed.
    pub fn ok(&self, verb: &str, args: &[&str]) -> String {
        let out = self.output(verb, args);
        assert!(out.status.success(), "cluster {verb} {args:?}: {}\n{}", out.status, text(&out));
        String::from_utf8_lossy(&out.stdout).trim().to_string()
    }

    pub fn run(&self, command: &str) -> String {
        self.ok("run", &["bash", "-c", command])
    }

    pub fn on(&self, node: &str, command: &str) -> String {
        self.ok("on", &[node, "bash", "-c", command])
    }

    /// Runs test `name` of this program as the ranks of one step; inside, `inside()` is true.
    pub fn srun(&self, options: &[&str], name: &str) -> Output {
        let exe = std::env::current_exe().unwrap();
        let mut c = self.command("run", &["srun"]);
        c.args(options)
            .arg(exe)
            .args(["--exact", name, "--nocapture", "--test-threads=1"])
            .env(INSIDE, "1")
            .env("OMP_NUM_THREADS", "1");
        c.output().unwrap()
    }

    pub fn has_namespaces(&self) -> bool {
        self.ok("status", &[]).contains("form namespaces")
    }

    pub fn path(&self) -> &Path {
        self.dir.path()
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        let _ = self.output("down", &[]);
    }
}

const INSIDE: &str = "HERD_TEST_INSIDE_RANKS";

pub fn inside() -> bool {
    std::env::var_os(INSIDE).is_some()
}

pub fn wait_until(what: &str, limit: Duration, mut done: impl FnMut() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < limit, "{what}: not within {limit:?}");
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// Processes whose command line or environment names `path`, zombies left out.
pub fn processes_of(path: &Path) -> Vec<String> {
    let needle = path.to_string_lossy().into_owned();
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let read = |file: &str| std::fs::read(entry.path().join(file)).unwrap_or_default();
        let (line, vars) = (read("cmdline"), read("environ"));
        if [&line, &vars].iter().any(|bytes| String::from_utf8_lossy(bytes).contains(&needle)) && !line.is_empty() {
            found.push(String::from_utf8_lossy(&line).replace('\0', " "));
        }
    }
    found
}

pub fn interfaces() -> BTreeSet<PathBuf> {
    std::fs::read_dir("/sys/class/net").unwrap().flatten().map(|e| e.path()).collect()
}

/// Nothing of the cluster is left: no process, no mount, no network interface.
pub fn assert_nothing_left(path: &Path, before: &BTreeSet<PathBuf>) {
    wait_until("processes end", Duration::from_secs(5), || processes_of(path).is_empty());
    let mounts = std::fs::read_to_string("/proc/mounts").unwrap();
    assert!(!mounts.contains(&*path.to_string_lossy()), "{mounts}");
    assert_eq!(&interfaces(), before);
}
