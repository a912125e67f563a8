//! Running the real binary, alone or on MPI ranks, and the Python oracle.
#![allow(dead_code)]

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// The herd binary under test.
pub fn herd() -> Command {
    Command::new(env!("CARGO_BIN_EXE_herd"))
}

/// herd on so many ranks.
pub fn herd_on(ranks: usize) -> Command {
    if ranks == 1 {
        return herd();
    }
    let mut c = mpirun(ranks);
    c.arg(env!("CARGO_BIN_EXE_herd"));
    c
}

/// `mpirun -n N` with what a test host needs (root, more ranks than cores, loopback only): of Open MPI 4 to 6, which read the
/// variables of their version, or of MPICH, which needs nothing. HERD_MPIRUN names one of several.
pub fn mpirun(n: usize) -> Command {
    let mut c = Command::new(std::env::var_os("HERD_MPIRUN").unwrap_or_else(|| "mpirun".into()));
    c.args(["-n", &n.to_string()])
        .env("OMPI_ALLOW_RUN_AS_ROOT", "1")
        .env("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1")
        .env("OMPI_MCA_rmaps_base_oversubscribe", "1")
        .env("OMPI_MCA_hwloc_base_binding_policy", "none")
        .env("PRTE_MCA_rmaps_default_mapping_policy", ":oversubscribe")
        .env("PRTE_MCA_hwloc_default_binding_policy", "none")
        .env("OMPI_MCA_btl", "self,vader")
        .env("OMPI_MCA_btl_vader_single_copy_mechanism", "none");
    c
}

pub const INSIDE: &str = "HERD_TEST_INSIDE_RANKS";

/// Runs the calling test on `n` MPI ranks: outside, starts `mpirun` on this very test (`name` as the harness knows it)
/// and fails if a rank fails; inside, returns true and the caller goes on with the rank's part.
///
/// ```ignore
/// #[test]
/// fn sums() { if ranks(4, "wire::sums") { ... } }
/// ```
pub fn ranks(n: usize, name: &str) -> bool {
    if std::env::var_os(INSIDE).is_some() {
        return true;
    }
    let exe = std::env::current_exe().unwrap();
    let out = mpirun(n)
        .env(INSIDE, "1")
        .env("OMP_NUM_THREADS", "1")
        .arg(exe)
        .args(["--exact", name, "--nocapture", "--test-threads=1"])
        .output()
        .expect("mpirun starts");
    assert!(out.status.success(), "{n} ranks of {name}: {}\n{}", out.status, text(&out));
    assert!(text(&out).contains("1 passed"), "{name} is not the name of a test");
    false
}

/// Both streams as text.
pub fn text(out: &Output) -> String {
    String::from_utf8_lossy(&out.stdout).into_owned() + &String::from_utf8_lossy(&out.stderr)
}

/// What a command that must succeed printed, on both streams.
pub fn said(c: &mut Command) -> String {
    let out = c.output().unwrap();
    assert!(out.status.success(), "{c:?}: {}", text(&out));
    text(&out)
}

/// The Python with torch and transformers: the oracle.
pub fn python() -> Command {
    let path =
        std::env::var("HERD_PYTHON").map(PathBuf::from).unwrap_or_else(|_| root().join("build/deps/python/bin/python"));
    assert!(path.exists(), "no Python oracle at {}: run `make deps-test`, or set HERD_PYTHON", path.display());
    let mut c = Command::new(path);
    c.env("HF_HUB_OFFLINE", "1").current_dir(root());
    c
}

/// The repository.
pub fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// Names in a directory, sorted.
pub fn names(directory: &Path) -> Vec<String> {
    let mut all: Vec<String> =
        std::fs::read_dir(directory).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    all.sort();
    all
}
