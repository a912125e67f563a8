//! Settings of Slurm (`scontrol show config`, slurm.conf(5)) that would hurt a long run.

use crate::doctor::check::Check;
use std::collections::BTreeMap;

/// Seconds between SIGTERM and SIGKILL in which ranks may save.
const KILL_WAIT: u64 = 10;
/// Seconds after which a silent node is given up: so long a job that lost it stays in the queue's way.
const NODE_TIMEOUT: u64 = 600;

/// `config`: what `scontrol show config` prints; `job`: `scontrol show job -o`, where there is one.
pub fn judge(config: &str, job: Option<&str>) -> Vec<Check> {
    let keys: BTreeMap<&str, &str> =
        config.lines().filter_map(|l| l.split_once('=')).map(|(k, v)| (k.trim(), v.trim())).collect();
    if keys.is_empty() {
        return vec![Check::skipped("slurm", "scontrol show config printed nothing")];
    }
    let text = |key: &str| keys.get(key).copied().unwrap_or_default();
    let number = |key: &str| text(key).split_whitespace().next().and_then(|n| n.parse::<u64>().ok());
    let mut out = Vec::new();
    let mut hurt = |fact: String, cure: &str| out.push(Check::amber("slurm", fact, cure));
    if let Some(s) = number("KillWait").filter(|s| *s < KILL_WAIT) {
        hurt(
            format!("KillWait={s}: ranks have {s} s between SIGTERM and SIGKILL"),
            "ask for --signal=B:USR1@600 in the batch script, which herd launch saves on, or raise KillWait to 30",
        );
    }
    match number("SlurmdTimeout") {
        Some(0) => hurt("SlurmdTimeout=0: a node that is lost is never marked down".into(), "set SlurmdTimeout to 300"),
        Some(s) if s > NODE_TIMEOUT => hurt(
            format!("SlurmdTimeout={s}: a lost node holds its job that long after it has ended"),
            "set SlurmdTimeout to 300",
        ),
        _ => {}
    }
    let requeue = job.and_then(|j| j.split_whitespace().find_map(|w| w.strip_prefix("Requeue=")));
    match (requeue, number("JobRequeue")) {
        (Some("0"), _) => {
            hurt("this job may not be requeued (Requeue=0)".into(), "add `#SBATCH --requeue` to the batch script")
        }
        (None, Some(0)) => hurt(
            "JobRequeue=0: jobs are not requeued unless they ask for it".into(),
            "add `#SBATCH --requeue` to the batch script",
        ),
        _ => {}
    }
    let preempt = text("PreemptMode").to_ascii_uppercase();
    if preempt.contains("SUSPEND") || preempt.contains("GANG") {
        hurt(
            format!("PreemptMode={preempt}: ranks that are suspended look dead to their peers"),
            "run where PreemptMode is REQUEUE, or where nothing preempts",
        );
    } else if preempt.contains("CANCEL") {
        hurt(
            format!("PreemptMode={preempt}: a preempted job is cancelled, not requeued"),
            "run where PreemptMode is REQUEUE, or submit successors (launch.successor)",
        );
    }
    if text("ConstrainRAMSpace") == "yes"
        && text("MaxRAMPercent").trim_end_matches('%').parse().is_ok_and(|p: f64| p < 100.0)
    {
        hurt(
            format!(
                "MaxRAMPercent={}: a job may use less memory than its node has, and snapshots count as its memory",
                text("MaxRAMPercent")
            ),
            "leave room for snapshots (herd plan says how much)",
        );
    }
    if out.is_empty() {
        let shown =
            ["SLURM_VERSION", "KillWait", "SlurmdTimeout", "TreeWidth", "JobRequeue", "MpiDefault", "PreemptMode"];
        let each: Vec<String> =
            shown.iter().filter(|k| keys.contains_key(**k)).map(|k| format!("{k}={}", text(k))).collect();
        let limit = job
            .and_then(|j| j.split_whitespace().find(|w| w.starts_with("TimeLimit=")))
            .map_or(String::new(), |l| format!(", {l} of this job"));
        out.push(Check::green("slurm", each.join(", ") + &limit));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::check::Light;

    const GOOD: &str = "Configuration data as of 2026-01-01T00:00:00\nJobRequeue              = 1\nKillWait                = 30 sec\n\
                        MpiDefault              = none\nPreemptMode             = OFF\nSlurmdTimeout           = 300 sec\nTreeWidth = 50\n";

    #[test]
    fn what_hurts_is_told() {
        let found = judge(GOOD, Some("JobId=7 Requeue=1 TimeLimit=1-00:00:00"));
        assert!(
            found.len() == 1 && found[0].light == Light::Green && found[0].fact.contains("TimeLimit=1-00:00:00"),
            "{found:?}"
        );
        for (from, to, words) in [
            ("30 sec", "2 sec", "KillWait=2"),
            ("300 sec", "0 sec", "SlurmdTimeout=0"),
            ("300 sec", "3600 sec", "SlurmdTimeout=3600"),
            ("JobRequeue              = 1", "JobRequeue = 0", "JobRequeue=0"),
            ("OFF", "GANG,SUSPEND", "look dead"),
            ("OFF", "CANCEL", "is cancelled"),
            ("TreeWidth = 50", "ConstrainRAMSpace = yes\nMaxRAMPercent = 90.0%", "MaxRAMPercent"),
        ] {
            let found = judge(&GOOD.replace(from, to), None);
            let told = found.len() == 1 && found[0].light == Light::Amber && found[0].fact.contains(words);
            assert!(told, "{words}: {found:?}");
        }
        assert!(judge(GOOD, Some("JobId=7 Requeue=0"))[0].fact.contains("Requeue=0"));
        assert_eq!(judge("", None)[0].light, Light::Skipped);
    }
}
