//! Every schedule, played: order, deadlock, bubble, activation peak.

use crate::config::PipelineSchedule as Kind;
use crate::schedules::simulate::{play, timeline, Costs, Played};
use crate::schedules::{forward_only, list, Action, Lists};

const ALL: [Kind; 4] = [Kind::GPipe, Kind::OneFOneB, Kind::Interleaved, Kind::ZeroBubble];

fn lists(kind: Kind, stages: usize, micros: usize, chunks: usize) -> Lists {
    (0..stages).map(|s| list(kind, s, stages, micros, chunks)).collect()
}

fn chunks(kind: Kind) -> &'static [usize] {
    match kind {
        Kind::Interleaved => &[1, 2, 3, 4],
        _ => &[1],
    }
}

/// Forward, input gradient and weight gradient of a whole stage cost this much.
const F: f64 = 1.0;
const B: f64 = 1.25;
const W: f64 = 0.75;

fn equal(kind: Kind, stages: usize, micros: usize, chunks: usize) -> Played {
    let v = chunks as f64;
    play(&lists(kind, stages, micros, chunks), &Costs::even(stages * chunks, F / v, B / v, W / v))
        .unwrap_or_else(|e| panic!("{kind:?} {stages} {micros} {chunks}: {e}"))
}

/// Time in which the busiest stage does nothing.
fn idle(p: &Played, micros: usize) -> f64 {
    p.makespan - micros as f64 * (F + B + W)
}

fn close(a: f64, b: f64) -> bool {
    (a - b).abs() < 1e-9
}

#[test]
fn no_schedule_deadlocks_or_forgets_anything() {
    let mut played = 0;
    for kind in ALL {
        for stages in (1..=9).chain([16, 33]) {
            for micros in (1..=2 * stages + 3).chain([40, 64]) {
                for &chunks in chunks(kind) {
                    // Nothing is faster than the way of one micro-batch through all stages.
                    let p = equal(kind, stages, micros, chunks);
                    assert!(p.makespan > stages as f64 * (F + B) && idle(&p, micros) > -1e-9);
                    played += 1;
                }
            }
        }
    }
    assert!(played > 1000);
}

#[test]
fn bubbles_are_what_the_papers_say() {
    for (stages, micros) in [(1, 1), (1, 5), (2, 8), (3, 7), (4, 4), (4, 16), (8, 16), (16, 32), (16, 37)] {
        let p = stages as f64 - 1.0;
        let of = |kind, chunks| idle(&equal(kind, stages, micros, chunks), micros);
        assert!(close(of(Kind::GPipe, 1), p * (F + B + W)), "{stages} {micros}");
        assert!(close(of(Kind::OneFOneB, 1), p * (F + B + W)), "{stages} {micros}");
        assert!(close(of(Kind::ZeroBubble, 1), p * (F + B - W)), "{stages} {micros}");
        for v in [2, 4] {
            assert!(close(of(Kind::Interleaved, v), p * (F + B + W) / v as f64), "{stages} {micros} {v}");
        }
    }
    // As a share of all stages' time: (P−1)/(M+P−1).
    assert!(close(equal(Kind::OneFOneB, 4, 8, 1).bubble(), 3.0 / 11.0));
}

#[test]
fn activations_stay_within_what_the_schedule_promises() {
    for (stages, micros) in [(1, 4), (2, 8), (4, 3), (4, 16), (8, 24)] {
        let most = micros.min(stages) as f64;
        assert!(equal(Kind::GPipe, stages, micros, 1).peak.iter().all(|&p| p == micros as f64));
        let one = equal(Kind::OneFOneB, stages, micros, 1).peak;
        assert!((0..stages).all(|s| one[s] == (micros.min(stages - s)) as f64));
        assert!(equal(Kind::ZeroBubble, stages, micros, 1).peak.iter().all(|&p| p <= most));
        // arXiv:2104.04473 §2.2: of chunks, V·P + P − 1 where M is a multiple of P.
        if micros % stages == 0 {
            let peak = equal(Kind::Interleaved, stages, micros, 2).peak;
            assert!(peak.iter().all(|&p| p <= (3 * stages - 1) as f64), "{peak:?}");
        }
    }
}

#[test]
fn transfers_and_uneven_stages_cost_what_they_must() {
    let mut costs = Costs::even(2, 1.0, 1.0, 1.0);
    costs.transfer = 0.5;
    // One micro-batch goes there and back: two transfers.
    assert!(close(play(&lists(Kind::OneFOneB, 2, 1, 1), &costs).unwrap().makespan, 7.0));
    // The dear stage is never idle once it has begun.
    costs = Costs { forward: vec![1.0, 3.0], ..Costs::even(2, 1.0, 1.0, 1.0) };
    assert!(close(play(&lists(Kind::OneFOneB, 2, 8, 1), &costs).unwrap().makespan, 1.0 + 8.0 * 5.0 + 2.0));
}

#[test]
fn wrong_lists_are_refused_with_what_is_wrong() {
    let costs = Costs::even(2, 1.0, 1.0, 1.0);
    let fail = |change: fn(&mut Lists)| {
        let mut lists = lists(Kind::OneFOneB, 2, 3, 1);
        change(&mut lists);
        play(&lists, &costs).unwrap_err().fact
    };
    let e = fail(|l| {
        l[1].swap(0, 2);
        l[1].swap(1, 3);
    });
    assert!(e.contains("comes as [1, 0, 2]"), "{e}");
    // Stage 0 waits for the gradient of micro-batch 0 before it sends 1, stage 1 for 1 before it makes that gradient.
    let e = fail(|l| {
        l[0].swap(1, 2);
        l[1].swap(1, 2);
    });
    assert!(e.contains("for ever: stage 0 at Backward { chunk: 0, micro: 0 }"), "{e}");
    assert!(e.contains("stage 1 at Forward { chunk: 1, micro: 1 }"), "{e}");
    let e = fail(|l| l[1].truncate(5));
    assert!(e.contains("backward input of chunk 1 on stage 1 comes as [0, 1]"), "{e}");
    let e = fail(|l| l[1].swap(0, 1));
    assert!(e.contains("Backward { chunk: 1, micro: 0 } on stage 1 comes before what it needs"), "{e}");
    assert!(fail(|l| l[0].push(Action::Forward { chunk: 1, micro: 0 })).contains("does not belong on stage 0"));
}

#[test]
fn gradients_come_in_the_order_of_micro_batches_also_where_groups_are_uneven() {
    // 7 micro-batches on 3 stages: groups of 4 and 3.
    let all = list(Kind::Interleaved, 0, 3, 7, 2);
    let forward: Vec<(usize, usize)> =
        all.iter().filter(|a| matches!(a, Action::Forward { .. })).map(|a| (a.chunk(), a.micro())).collect();
    let groups = [(0, 0), (0, 1), (0, 2), (0, 3), (3, 0), (3, 1), (3, 2), (3, 3), (0, 4), (0, 5), (0, 6), (3, 4)];
    assert_eq!(forward[..12], groups);
    assert_eq!(forward_only(0, 3, 7, 2).len(), 14);
}

#[test]
fn a_timeline_shows_who_does_what_when() {
    let played = play(&lists(Kind::ZeroBubble, 2, 2, 1), &Costs::even(2, 1.0, 1.0, 1.0)).unwrap();
    let want = "stage 0  FF.BWBW\n         01.0011\nstage 1  .FBFBWW\n         .001101\n";
    assert_eq!(timeline(&played, 1.0), want);
}
