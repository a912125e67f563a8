//! Every schedule, played: order, deadlock, bubble, activation peak.

use super::schedules::{Action, Kind};
use super::simulate::{play, timeline, Costs, Played};

fn chunks(kind: Kind) -> &'static [usize] {
    match kind {
        Kind::Interleaved => &[1, 2, 3, 4],
        _ => &[1],
    }
}

fn equal(kind: Kind, stages: usize, micros: usize, chunks: usize) -> Played {
    let costs = Costs::even(stages * chunks, 1.0, 1.0, 1.0);
    play(&kind.lists(stages, micros, chunks), &costs)
        .unwrap_or_else(|e| panic!("{kind:?} {stages} {micros} {chunks}: {e}"))
}

#[test]
fn no_schedule_deadlocks_or_forgets_anything() {
    let mut played = 0;
    for kind in Kind::ALL {
        for stages in (1..=9).chain([16, 33]) {
            for micros in (1..=2 * stages + 3).chain([40, 64]) {
                for &chunks in chunks(kind) {
                    let p = equal(kind, stages, micros, chunks);
                    // Nothing is faster than the work of one stage and the way through the pipeline.
                    assert!(p.makespan >= (3 * micros * chunks) as f64);
                    played += 1;
                }
            }
        }
    }
    assert!(played > 1000);
}
