//! The versions that this CPU would not choose: the same tests in a process where `HERD_CPU` sets a lower level.

fn all_tests_at(level: &str) {
    let exe = std::env::current_exe().expect("this program's path");
    let rooms = ["attention", "flat", "matrix", "quantized", "rows"].map(|m| format!("kernels::tests::{m}::"));
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

/// Integers and a fixed order of the few operations around them: every CPU gives the same bits.
#[test]
fn quantized_products_have_the_same_bits_on_every_level() {
    let at = |level: &str| {
        let exe = std::env::current_exe().expect("this program's path");
        let test = ["--exact", "--nocapture", "kernels::tests::quantized::fingerprint"];
        let out = std::process::Command::new(exe).args(test).env("HERD_CPU", level).output().expect("it starts again");
        let text = String::from_utf8_lossy(&out.stdout).into_owned();
        let line = text.lines().find_map(|l| l.split_once("fingerprint of quantized products: "));
        line.map(|(_, bits)| bits.to_string()).unwrap_or_else(|| panic!("{level}: {text}"))
    };
    let best = at("");
    assert_eq!((at("avx2"), at("portable")), (best.clone(), best));
}
