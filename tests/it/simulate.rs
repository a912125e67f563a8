//! `herd simulate` through the real binary.

use super::support::{herd, text};

/// Seeds that broke a rule once, with what it was.
const FAILED_ONCE: [(&str, &[&str]); 1] = [
    // a node that was still dead when its pause was over was counted a third time, and given up after two deaths
    ("14", &["--nodes", "16", "--spares", "3", "--switch", "4", "--days", "10", "--failure-rate", "0.003"]),
];

#[test]
fn seeds_that_failed_once_break_no_rule() {
    for (seed, options) in FAILED_ONCE {
        let out =
            herd().arg("simulate").args(options).args(["--seed", seed, "--seeds", "1", "--json"]).output().unwrap();
        assert!(out.status.success(), "seed {seed} {options:?}: {}", text(&out));
    }
}
