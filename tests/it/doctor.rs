//! `herd doctor` on this host alone and on ranks of mpirun.

use super::support::{herd, mpirun, text};
use super::train::Run;
use herd::error::Exit;
use serde_json::Value;

fn checks(out: &std::process::Output) -> Vec<Value> {
    let v: Value = serde_json::from_slice(&out.stdout).unwrap_or_else(|e| panic!("{e}: {}", text(out)));
    v["checks"].as_array().unwrap().clone()
}

fn row<'a>(checks: &'a [Value], name: &str) -> &'a Value {
    checks.iter().find(|c| c["name"] == name).unwrap_or_else(|| panic!("no row {name}: {checks:?}"))
}

#[test]
fn one_host_with_a_configuration() {
    let run = Run::new();
    let out = herd().arg("doctor").arg(run.config()).args(["--json"]).output().unwrap();
    let all = checks(&out);
    for (name, light) in [
        ("plan", "green"),
        ("inputs", "green"),
        ("storage", "green"),
        ("results", "green"),
        ("links", "skipped"),
        ("slurm", "skipped"),
    ] {
        assert_eq!(row(&all, name)["light"], light, "{all:?}");
    }
    let left: Vec<_> = std::fs::read_dir(run.dir.path())
        .unwrap()
        .flatten()
        .filter(|e| e.file_name().to_string_lossy().starts_with(".herd-doctor"))
        .collect();
    assert!(left.is_empty(), "{left:?}");
    assert!(!run.path("run").exists(), "an examination makes no run directory");
}

#[test]
fn ranks_of_one_host_and_a_site_s_own_check() {
    let run = Run::new();
    let mut c = mpirun(2);
    c.arg(herd().get_program()).arg("doctor").arg(run.config()).arg("--json");
    c.args(["--set", "launch.health_check=[sh, -c, 'echo fan is slow; exit 4']"]);
    let out = c.output().unwrap();
    assert_eq!(out.status.code(), Some(Exit::Unhealthy.code()), "{}", text(&out));
    let json = String::from_utf8_lossy(&out.stdout);
    let v: Value = serde_json::from_str(&json[..json.rfind('}').unwrap() + 1]).unwrap();
    assert_eq!((v["ranks"].as_u64(), v["nodes"].as_array().map(Vec::len)), (Some(2), Some(1)));
    let health = row(v["checks"].as_array().unwrap(), "health check");
    assert!(health["light"] == "red" && health["fact"] == "ended with code 4: fan is slow", "{health}");
}

#[test]
fn what_is_wrong_with_the_configuration_is_said() {
    let run = Run::new();
    let out = herd()
        .arg("doctor")
        .arg(run.config())
        .args(["--set", "data.train.0.path=/no/such/corpus", "--json"])
        .output()
        .unwrap();
    assert_eq!(out.status.code(), Some(Exit::Unhealthy.code()), "{}", text(&out));
    assert!(row(&checks(&out), "inputs")["fact"].as_str().unwrap().contains("/no/such/corpus"));
    let out = herd().args(["doctor", "/no/such/file.yaml"]).output().unwrap();
    assert_eq!(out.status.code(), Some(Exit::Config.code()), "{}", text(&out));
}
