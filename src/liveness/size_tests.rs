//! The judges and the choice at the size of 2,048 nodes with 8 ranks each, by the code that runs: how long they take, and that
//! four times the ranks cost less than nine times as much (pairs would cost sixteen; what no longer fits a cache costs more, too). `figures` prints what benchmarks/scale.py writes down.

use super::folder::VerdictFolder;
use super::message::{Message, Probe};
use super::roster::tests::grid;
use super::verdict::{choose, tests::verdict, Suspect};
use super::view::{ProbeTiming, WatchAction};
use super::watch::Watch;
use super::{Phase, Reason, Verdict};
use crate::config::LivenessSection;
use crate::world::WireMembers;
use std::hint::black_box;
use std::time::{Duration, Instant};

const RANKS: usize = 16_384;
const PER_NODE: usize = 8;
const STAGES: usize = 16;
const CONTROL: usize = 0;
const TENSOR: usize = 1;
const PIPELINE: usize = 2;
const DATA: usize = 3;

/// Who shares which wire: tensor ranks on a node, 16 stages, the rest replicas.
fn wires(n: usize) -> Vec<WireMembers> {
    let (tensor, replica) = (|r: usize| r % PER_NODE, |r: usize| r / (PER_NODE * STAGES));
    let stage = move |r: usize| r / PER_NODE % STAGES;
    let table = |name: &str, place: &dyn Fn(usize) -> (usize, usize)| {
        let places = (0..n).map(place).map(|(group, place)| (group as u64, place));
        WireMembers { name: name.into(), places: places.collect() }
    };
    vec![
        table("control", &|r| (0, r)),
        table("tensor", &|r| (r / PER_NODE, tensor(r))),
        table("pipeline", &|r| (replica(r) * PER_NODE + tensor(r), stage(r))),
        table("data", &|r| (r % (PER_NODE * STAGES), replica(r))),
    ]
}

fn stuck(rank: usize) -> Probe {
    let mut p = Probe { rank: rank as u32, step: 9, phase: Phase::Reduce as u32, ..Default::default() };
    (p.stuck_ms, p.limit_ms, p.own_us) = (40_000, 30_000, 900_000);
    p
}

fn inside(rank: usize, wire: usize, n: u32) -> Probe {
    let mut p = stuck(rank);
    (p.entered[wire], p.left[wire], p.blocked_wire) = (n, n - 1, wire as u32 + 1);
    p
}

/// Ways for all ranks to stand still, each with the reason that is to be found.
fn scenes(n: usize) -> [(Reason, Vec<Probe>); 4] {
    let all = |f: &dyn Fn(usize) -> Probe| (0..n).map(f).collect::<Vec<_>>();
    // One never came to what all are in.
    let one = all(&|r| if r == n - 3 { stuck(r) } else { inside(r, CONTROL, 7) });
    // Nobody comes out.
    let wire = all(&|r| inside(r, CONTROL, 7));
    // Each waits for many: counts all differ.
    let stairs = all(&|r| inside(r, CONTROL, 7 + r as u32));
    // A half waits for the other half's sums, and that one for messages of the first: a ring.
    let ring = all(&|r| match r / PER_NODE % 2 {
        0 => inside(r, CONTROL, 8),
        _ => {
            let mut p = stuck(r);
            (p.blocked_wire, p.blocked_peer) = (PIPELINE as u32 + 1, (r / PER_NODE % STAGES) as u32);
            (p.entered[CONTROL], p.left[CONTROL]) = (7, 7);
            (p.entered[TENSOR], p.entered[DATA]) = (3, 3);
            p
        }
    });
    [
        (Reason::NoProgress, one),
        (Reason::WireStalled, wire),
        (Reason::NoProgress, stairs),
        (Reason::SkippedCollective, ring),
    ]
}

/// The longest of the rounds in which the monitor of `n` ranks comes to its verdict.
fn judging(n: usize, (reason, probes): &(Reason, Vec<Probe>)) -> Duration {
    let timing = ProbeTiming::new(&LivenessSection::default());
    let every = timing.interval;
    let mut watch = Watch::new(grid(0, n / PER_NODE, PER_NODE), timing, Duration::ZERO);
    watch.learn(|_| wires(n));
    for node in probes.chunks(PER_NODE) {
        let from = node[0].rank as usize;
        let message = if from == 0 { Message::Probe(node[1]) } else { Message::Report(node.to_vec()) };
        watch.hear(Duration::ZERO, from.max(1), message);
    }
    (2..PER_NODE).for_each(|r| _ = watch.hear(Duration::ZERO, r, Message::Probe(probes[r])));
    let mut longest = Duration::ZERO;
    for round in 0..3 {
        let began = Instant::now();
        let actions = black_box(watch.tick(every * round, probes[0]));
        longest = longest.max(began.elapsed());
        match (round, &actions[..]) {
            (2, [WatchAction::Verdict(v)]) => assert_eq!(v.reason, *reason),
            (0 | 1, []) => {}
            other => panic!("{other:?}"),
        }
    }
    longest
}

/// A storm: half of the ranks complain of a lost peer, the others accuse each other over a cut, and suspect more.
fn storm(n: usize) -> Vec<Verdict> {
    let of = |r: usize| match r % 2 {
        0 => verdict(r, Reason::PeerLost, &[]),
        _ => {
            let near: Vec<usize> = (1..9).map(|k| (r + 2 * k * 7) % n).collect();
            let mut v = verdict(r, Reason::MissedProbes, &near);
            v.accuser_node = format!("n{}", r / PER_NODE);
            v.nodes = near.iter().map(|r| format!("n{}", r / PER_NODE)).collect();
            let late = |k: usize| Suspect { rank: (r + n - 14 * k) % n, node: "n".into(), age_s: 1.0 };
            v.evidence.suspects = (1..9).map(late).collect();
            v.evidence.nodes_heard = r * 7919 % 100;
            v
        }
    };
    (0..n).map(of).collect()
}

fn choosing(verdicts: &[Verdict]) -> Duration {
    let began = Instant::now();
    let chosen = black_box(choose(verdicts)).unwrap();
    let took = began.elapsed();
    assert_eq!(chosen.reason, Reason::MissedProbes);
    took
}

/// Four times the work costs less than nine times as much, and the whole less than `limit`; other work of the host may spoil a try.
fn assert_growth_is_mild(what: &str, limit: Duration, mut cost: impl FnMut(usize) -> Duration) {
    let mut best = |n: usize| (0..5).map(|_| cost(n)).min().unwrap_or_default();
    let tries: Vec<(Duration, Duration)> = (0..4).map(|_| (best(RANKS / 4), best(RANKS))).collect();
    println!("{what}: {tries:?}");
    assert!(tries.iter().any(|(part, whole)| *whole < *part * 9 && *whole < limit), "{what}: {tries:?}");
}

#[test]
fn judging_grows_with_the_ranks_and_not_with_their_pairs() {
    for i in 0..scenes(PER_NODE * STAGES).len() {
        let (part, whole) = (scenes(RANKS / 4), scenes(RANKS));
        let cost = |n: usize| judging(n, if n == RANKS { &whole[i] } else { &part[i] });
        assert_growth_is_mild(&format!("scene {i}"), Duration::from_millis(50), cost);
    }
}

#[test]
fn choosing_grows_with_the_verdicts_and_not_with_their_pairs() {
    let (part, whole) = (storm(RANKS / 4), storm(RANKS));
    let cost = |n: usize| choosing(if n == RANKS { &whole } else { &part });
    assert_growth_is_mild("storm", Duration::from_millis(200), cost);
}

/// One line of JSON, in milliseconds.
#[test]
#[ignore = "prints figures; benchmarks/scale.py runs it"]
fn figures() {
    let best =
        |cost: &mut dyn FnMut() -> Duration| (0..9).map(|_| cost()).min().unwrap_or_default().as_secs_f64() * 1e3;
    let judged = scenes(RANKS).iter().map(|scene| best(&mut || judging(RANKS, scene))).fold(0.0, f64::max);
    let verdicts = storm(RANKS);
    let chosen = best(&mut || choosing(&verdicts));
    let dir = tempfile::tempdir().unwrap();
    for node in verdicts.chunks(PER_NODE) {
        let lines: String = node.iter().map(|v| serde_json::to_string(v).unwrap() + "\n").collect();
        let path =
            Verdict { accuser_node: format!("n{}", node[0].accuser / PER_NODE), ..node[0].clone() }.path(dir.path());
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, lines).unwrap();
    }
    let mut reading = || {
        let began = Instant::now();
        assert_eq!(VerdictFolder::new(dir.path(), 2).all().unwrap().len(), RANKS);
        began.elapsed()
    };
    let read = best(&mut reading);
    println!(
        "{}",
        serde_json::json!({ "judge_16384_ms": judged, "choose_16384_verdicts_ms": chosen, "read_16384_verdicts_ms": read })
    );
}
