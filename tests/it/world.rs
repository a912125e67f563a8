//! The control plane: what every rank gets, against what one process computes; and how messages and peers grow with the world.

use super::support::{ranks, text};
use super::train::Run;
use herd::error::{Error, Exit};
use herd::world::{Op, World};

/// What rank `r` says: of another length for each, empty for some.
fn words(r: usize) -> Vec<u8> {
    (0..(r * 7 + 3) % 11 * (r % 4)).map(|i| (r * 31 + i) as u8).collect()
}

/// A value whose sum depends on the order in which it is made.
fn value(r: usize, i: usize) -> f64 {
    1.0 / (1 + r * 3 + i) as f64 * 10f64.powi((r % 5) as i32 * 3)
}

/// Rank order in blocks of 16, then over blocks.
fn sum(n: usize, i: usize) -> f64 {
    let mut values: Vec<f64> = (0..n).map(|r| value(r, i)).collect();
    while values.len() > 1 {
        values = values.chunks(16).map(|block| block.iter().copied().reduce(|a, b| a + b).unwrap()).collect();
    }
    values[0]
}

fn every_call() {
    let world = World::init().unwrap();
    let (me, n) = (world.rank(), world.size());
    let all: Vec<Vec<u8>> = (0..n).map(words).collect();
    world.barrier().unwrap();
    assert_eq!(world.all_gather_bytes(&words(me)).unwrap(), all);
    for root in 0..n {
        let got = world.gather_bytes(&words(me), root).unwrap();
        assert_eq!(got, (me == root).then(|| all.clone()), "gather to {root} of {n}");
        let mine = if me == root { vec![root as u8; root * 1000] } else { vec![7; me] };
        assert_eq!(world.broadcast_bytes(mine, root).unwrap(), vec![root as u8; root * 1000], "from {root} of {n}");
    }
    let mine: Vec<f64> = (0..3).map(|i| value(me, i)).collect();
    let sums = world.all_reduce_f64(&mine, Op::Sum).unwrap();
    let expected: Vec<f64> = (0..3).map(|i| sum(n, i)).collect();
    assert_eq!(
        sums.iter().map(|x| x.to_bits()).collect::<Vec<_>>(),
        expected.iter().map(|x| x.to_bits()).collect::<Vec<_>>()
    );
    assert_eq!(world.all_reduce_f64(&[me as f64, -(me as f64)], Op::Max).unwrap(), [n as f64 - 1.0, 0.0]);
    let nan = if me == n / 2 { f64::NAN } else { 1.0 };
    assert!(world.all_reduce_f64(&[nan], Op::Max).unwrap()[0].is_nan());
    agreement(&world);
    assert_eq!(world.from_first(|| Ok((me, "word".to_string()))).unwrap(), (0, "word".to_string()));
    let e = world.from_first::<()>(|| Err(Error::new(Exit::Data, format!("rank {me} found nothing")))).unwrap_err();
    assert!(e.exit == Exit::Data && e.agreed && e.rank.is_none() && e.fact == "rank 0 found nothing", "{e}");
    let places = world.node_of_each().unwrap();
    assert!(places.iter().all(|(leader, name)| *leader == 0 && name == world.host()), "{places:?}");
    world.finalize().unwrap();
}

fn agreement(world: &World) {
    let (me, n) = (world.rank(), world.size());
    assert_eq!(world.agree(Ok(me)).unwrap(), me);
    for first in 0..n {
        let failing = |r: usize| r >= first && (r - first).is_multiple_of(3);
        let mine = match failing(me) {
            true => Err(Error::new(Exit::Storage, format!("rank {me} has no disk")).hint("buy one")),
            false => Ok(()),
        };
        let e = world.agree(mine).unwrap_err();
        assert!(e.exit == Exit::Storage && e.hint.as_deref() == Some("buy one") && e.agreed, "{e}");
        assert!(n == 1 || e.to_string().contains(&format!("rank {first} has no disk")), "{e}");
        let one = (0..n).filter(|&r| failing(r)).count() == 1;
        assert_eq!(e.rank, (n > 1 && one).then_some(first));
    }
}

#[test]
fn every_rank_gets_what_it_should_on_three() {
    if ranks(3, "world::every_rank_gets_what_it_should_on_three") {
        every_call();
    }
}

#[test]
fn every_rank_gets_what_it_should_on_eight() {
    if ranks(8, "world::every_rank_gets_what_it_should_on_eight") {
        every_call();
    }
}

#[test]
fn every_rank_gets_what_it_should_on_nineteen() {
    if ranks(19, "world::every_rank_gets_what_it_should_on_nineteen") {
        every_call();
    }
}

/// What the rank that sent most over the control plane sent, in a real run on `n` data-parallel ranks.
fn sent(run: &Run, n: usize, steps: usize) -> (f64, f64) {
    let dir = run.path(&format!("on{n}for{steps}"));
    let keys = [
        format!("run_dir={}", dir.display()),
        format!("train.steps={steps}"),
        format!("batch.global={n}"),
        "batch.micro=1".into(),
        "validation.every=0".into(),
        "checkpoint.every=1000".into(),
        "liveness.enabled=false".into(),
        "optim.warmup_steps=1".into(),
    ];
    let keys: Vec<&str> = keys.iter().map(String::as_str).collect();
    let out = run.train(n, &keys);
    assert!(out.status.success(), "{n} ranks: {}", text(&out));
    let events = std::fs::read_to_string(dir.join("events.jsonl")).unwrap();
    let last: serde_json::Value = serde_json::from_str(events.lines().last().unwrap()).unwrap();
    let number = |key: &str| last["control_plane"][key].as_f64().unwrap();
    (number("messages"), number("peers"))
}

/// Exponent of growth: `b` is `a` times (m / n) to this power.
fn exponent(a: f64, b: f64, n: usize, m: usize) -> f64 {
    (b / a).ln() / (m as f64 / n as f64).ln()
}

/// 8, 16, 32 and 64 ranks: the logarithm doubles from 8 to 64, which is an exponent of a third. `make scale` has all four.
#[test]
fn messages_and_peers_grow_no_faster_than_the_logarithm() {
    let run = Run::new();
    let few = 8;
    let many = std::env::var("HERD_MOST_RANKS").ok().and_then(|n| n.parse().ok()).unwrap_or(32);
    let (short, long) = (2, 6);
    let at = |n| (sent(&run, n, short), sent(&run, n, long));
    let (a, b) = (at(few), at(many));
    let per_step = |((short_messages, _), (long_messages, _)): ((f64, f64), (f64, f64))| {
        (long_messages - short_messages) / (long - short) as f64
    };
    let peers = exponent(a.1 .1, b.1 .1, few, many);
    let messages = exponent(per_step(a), per_step(b), few, many);
    let start = exponent(a.0 .0, b.0 .0, few, many);
    println!(
        "{}",
        serde_json::json!({ "from": few, "to": many, "peers": peers, "messages_per_step": messages, "start": start,
        "peers_few": a.1 .1, "peers_many": b.1 .1, "step_few": per_step(a), "step_many": per_step(b), "messages_few": a.0 .0, "messages_many": b.0 .0 })
    );
    assert!(
        peers <= 0.5 && messages <= 0.5 && start <= 0.5,
        "peers {peers}, messages a step {messages}, start {start}"
    );
}
