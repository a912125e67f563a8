//! A new pipeline schedule in the simulator, beside those that herd has.
//!
//!     target/release/examples/4_schedule
//!
//! Room: `schedules`. A schedule is data: for each stage the list of what it does. The simulator finds deadlocks and wrong order, and
//! says how long it takes, how much of that is idle and how many activations are alive; the executor runs the same lists on ranks.

use herd::config::PipelineSchedule;
use herd::schedules::simulate::{play, timeline, Costs};
use herd::schedules::{list, Action, Lists};

const STAGES: usize = 4;
const MICROS: usize = 8;

/// GPipe in rounds: all forward passes of `round` micro-batches, then their backward passes. Less memory than GPipe, a longer bubble.
fn rounds(stage: usize, micros: usize, round: usize) -> Vec<Action> {
    let all: Vec<usize> = (0..micros).collect();
    let one = |micros: &[usize]| -> Vec<Action> {
        let forward = micros.iter().map(|&micro| Action::Forward { chunk: stage, micro });
        let backward = micros.iter().map(|&micro| Action::Backward { chunk: stage, micro });
        forward.chain(backward).collect()
    };
    all.chunks(round).flat_map(one).collect()
}

fn main() -> herd::error::Result<()> {
    let costs = Costs::even(STAGES, 1.0, 1.0, 1.0);
    let known = |kind| -> Lists { (0..STAGES).map(|s| list(kind, s, STAGES, MICROS, 1)).collect() };
    let mut found = Vec::new();
    for (name, lists) in [
        ("gpipe", known(PipelineSchedule::GPipe)),
        ("gpipe in rounds of 4", (0..STAGES).map(|s| rounds(s, MICROS, 4)).collect()),
        ("1f1b", known(PipelineSchedule::OneFOneB)),
        ("zero bubble", known(PipelineSchedule::ZeroBubble)),
    ] {
        let played = play(&lists, &costs)?;
        println!("{name}: bubble {:.0}%, activations alive {:?}", 100.0 * played.bubble(), played.peak);
        println!("{}", timeline(&played, 1.0));
        found.push(played);
    }
    assert!(found[1].peak[0] < found[0].peak[0] && found[1].bubble() > found[0].bubble());

    // What cannot work is refused: a backward pass before its forward pass waits for ever.
    let mut wrong = known(PipelineSchedule::OneFOneB);
    wrong[STAGES - 1].reverse();
    let e = play(&wrong, &costs).expect_err("a deadlock");
    println!("the last stage backwards: {e}");
    Ok(())
}
