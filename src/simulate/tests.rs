//! Sweeps over seeds, seeds that once failed, and mistakes that are put in on purpose.

use super::*;
use crate::host::{plant, Planted};

fn settings(nodes: usize, spares: usize, days: f64) -> Settings {
    Settings { days, faults_per_day: 8.0, ..Settings::small(nodes, spares).unwrap() }
}

fn number(name: &str, otherwise: u64) -> u64 {
    std::env::var(name).ok().and_then(|s| s.parse().ok()).unwrap_or(otherwise)
}

fn none_breaks_a_rule(all: &Sweep) {
    for r in &all.runs {
        assert!(r.violation.is_none(), "{}", serde_json::to_string_pretty(r).unwrap());
    }
}

#[test]
fn no_seed_of_some_hundred_breaks_a_rule() {
    let first = number("HERD_SIMULATE_SEED", 1);
    let (small, large) = (Arc::new(settings(8, 2, 0.5)), Arc::new(settings(64, 3, 0.5)));
    let all = sweep(first, number("HERD_SIMULATE_SEEDS", 60), |seed| match seed % 4 {
        0 => large.clone(),
        _ => small.clone(),
    });
    let all = all.unwrap();
    none_breaks_a_rule(&all);
    let kinds: BTreeSet<&String> = all.runs.iter().flat_map(|r| r.faults.keys()).collect();
    assert_eq!(kinds.len(), SimFault::ALL.len(), "every kind of fault came from seed {first} on: {kinds:?}");
    let attempts: u64 = all.runs.iter().map(|r| r.attempts).sum();
    assert!(attempts > 2 * all.runs.len() as u64, "{attempts} starts from seed {first} on");
}

#[test]
fn a_seed_gives_the_same_run_each_time() {
    let s = Arc::new(settings(8, 2, 1.0));
    let text = |seed| serde_json::to_string(&run(&s, seed).unwrap()).unwrap();
    for seed in [3, 4] {
        assert_eq!(text(seed), text(seed), "seed {seed}");
    }
    assert_ne!(text(3), text(4));
}

/// Seeds until the mistake is found; what it was found by.
fn found(mistake: Planted) -> Option<Violation> {
    let mut s = settings(8, 2, 0.5);
    if mistake == Planted::OneMoreStart {
        (s.config.launch.max_attempts, s.person_s) = (3, 60.0);
    }
    let s = Arc::new(s);
    plant(Some(mistake));
    let all = sweep(1, 400, |_| s.clone());
    plant(None);
    all.unwrap().runs.into_iter().find_map(|r| r.violation)
}

#[test]
fn planted_mistakes_are_found() {
    use Planted::*;
    let expected = [
        (Unfenced, "after attempt"),
        (OlderCopy, "was in reach"),
        (HealthyBlamed, "which no fault ever touched"),
        (DeadSpare, "had been dead before"),
        (OneMoreStart, "launch.max_attempts is 3"),
    ];
    let mut count = 0;
    for (mistake, words) in expected {
        let v = found(mistake);
        let what = v.as_ref().map_or("", |v| &v.what);
        assert!(what.contains(words), "{mistake:?}, seeds from 1 on: {v:#?}");
        count += 1;
    }
    println!("{}", serde_json::json!({ "planted": expected.len(), "found": count }));
}

#[test]
#[ignore = "for a look at one seed: SEED, NODES, COUNT, DAYS, FAULTS"]
fn one() {
    let s = settings(number("NODES", 8) as usize, 2, number("DAYS", 1) as f64);
    let s = Arc::new(Settings { faults_per_day: number("FAULTS", 8) as f64, ..s });
    let began = std::time::Instant::now();
    let all = sweep(number("SEED", 1), number("COUNT", 1), |_| s.clone()).unwrap();
    for r in all.runs.iter().filter(|r| all.runs.len() == 1 || r.violation.is_some()) {
        println!("{}", serde_json::to_string_pretty(r).unwrap());
    }
    println!("{} seeds in {:?}", all.runs.len(), began.elapsed());
}
