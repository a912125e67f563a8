//! What `make install` puts in place: modulefiles that load, batch scripts that Slurm accepts.

use super::cluster::Cluster;
use crate::support::{herd, root, text};
use std::path::PathBuf;
use std::process::Command;

#[test]
fn the_70b_script_fits_a_cluster_of_enough_nodes() {
    let script = root().join("slurm/llama3_70b.sbatch");
    let script = script.to_str().unwrap();
    let cluster = Cluster::up(&["--nodes", "1", "--declare", "gpu[001-017]"]);
    let out = cluster.output("run", &["sbatch", "--test-only", script]);
    assert!(out.status.success(), "{}", text(&out));
    // 16 nodes and a spare, all of their 128 CPUs.
    assert!(text(&out).contains("2176 processors on nodes gpu[001-017]"), "{}", text(&out));

    cluster.ok("up", &["--nodes", "1", "--declare", "gpu[001-008]"]);
    let out = cluster.output("run", &["sbatch", "--test-only", script]);
    assert!(!out.status.success(), "8 nodes are not 16: {}", text(&out));
}

/// `module load herd` by Lmod and by environment-modules, after a `make install` into a folder.
#[test]
fn modules_load() {
    let prefix = tempfile::tempdir().unwrap();
    let at = prefix.path().to_str().unwrap();
    let binary = herd().get_program().to_owned();
    let out = Command::new(root().join("tests/setup/install.sh")).arg(at).arg(&binary).output().unwrap();
    assert!(out.status.success(), "{}", text(&out));
    for file in ["share/man/man1/herd.1", "share/herd/slurm/llama3_70b.sbatch", "share/herd/configs/llama3_70b.yaml"] {
        assert!(prefix.path().join(file).exists(), "{file} is not installed");
    }
    let deps = std::env::var("HERD_DEPS").map(PathBuf::from).unwrap_or_else(|_| root().join("build/deps"));
    assert!(deps.join("modules/done").exists(), "no module tools in {}: run `make deps`", deps.display());
    for kind in ["lmod", "tcl"] {
        let script = format!(
            "set -e; . tests/module.sh {kind} {deps}/modules; export MODULEPATH={at}/share/modulefiles
             module load herd; command -v herd; herd --version; echo home $HERD_HOME; man -w herd || true
             module list 2>&1; module unload herd; if command -v herd; then echo still there; fi",
            deps = deps.display()
        );
        let out = Command::new("bash")
            .args(["-c", &script])
            .current_dir(root())
            .env("PATH", "/usr/bin:/bin")
            .output()
            .unwrap();
        let said = text(&out);
        assert!(out.status.success(), "{kind}: {said}");
        assert!(said.contains(&format!("{at}/bin/herd\nherd {}", env!("CARGO_PKG_VERSION"))), "{kind}: {said}");
        assert!(said.contains(&format!("home {at}/share/herd")), "{kind}: {said}");
        assert!(said.contains(concat!("herd/", env!("CARGO_PKG_VERSION"))), "{kind}: {said}");
        assert!(!said.contains("still there"), "{kind}: {said}");
    }
}
