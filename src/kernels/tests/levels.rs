//! The versions that this CPU would not choose: the same tests in a process where `HERD_CPU` sets a lower level.

fn all_tests_at(level: &str) {
    let exe = std::env::current_exe().expect("this program's path");
    let rooms = ["attention", "flat", "matrix", "rows"].map(|m| format!("kernels::tests::{m}::"));
    let out =
        std::process::Command::new(exe).args(rooms).env("HERD_CPU", level).output().expect("this program starts again");
    let text = String::from_utf8_lossy(&out.stdout);
    assert!(
        out.status.success() && !text.contains("running 0 tests"),
        "{text}{}",
        String::from_utf8_lossy(&out.stderr)
    );
}

#[test]
fn portable() {
    all_tests_at("portable");
}

#[test]
fn avx2() {
    all_tests_at("avx2");
}
