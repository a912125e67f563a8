//! Plays a schedule: finds deadlocks and wrong order, and says how long it takes, how much of that is idle, and how many
//! activations are alive at once.

use super::{Action, Lists, Parcel};
use crate::error::{Error, Exit, Result};
use std::collections::HashMap;

/// Costs of one micro-batch, by chunk in forward order; times in one unit, whatever it is.
#[derive(Clone, Debug)]
pub struct Costs {
    /// Time of a forward pass.
    pub forward: Vec<f64>,
    /// Time of the input gradients.
    pub backward_input: Vec<f64>,
    /// Time of the weight gradients.
    pub backward_weight: Vec<f64>,
    /// From the end of the action that makes a parcel to the moment when the receiver may use it; sending keeps nobody
    /// from working.
    pub transfer: f64,
    /// What a chunk keeps from its forward pass to its (last) backward pass.
    pub kept: Vec<f64>,
}

impl Costs {
    /// Equal chunks without transfer time, a unit of activations each.
    pub fn even(chunks: usize, forward: f64, backward_input: f64, backward_weight: f64) -> Costs {
        let all = |c| vec![c; chunks];
        Costs {
            forward: all(forward),
            backward_input: all(backward_input),
            backward_weight: all(backward_weight),
            transfer: 0.0,
            kept: all(1.0),
        }
    }

    /// Of one action.
    pub fn time(&self, action: Action) -> f64 {
        let c = action.chunk();
        match action {
            Action::Forward { .. } => self.forward[c],
            Action::Backward { .. } => self.backward_input[c] + self.backward_weight[c],
            Action::BackwardInput { .. } => self.backward_input[c],
            Action::BackwardWeight { .. } => self.backward_weight[c],
        }
    }
}

/// One action on the clock.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TimeSpan {
    /// What is done.
    pub action: Action,
    /// When it begins; the schedule starts at 0.
    pub start: f64,
    /// When it ends.
    pub end: f64,
}

/// A schedule that was played to its end.
#[derive(Clone, Debug)]
pub struct Played {
    /// By stage, in order of time.
    pub spans: Vec<Vec<TimeSpan>>,
    /// From the first start to the last end.
    pub makespan: f64,
    /// Most activations alive at once, by stage, in the unit of [`Costs::kept`].
    pub peak: Vec<f64>,
}

impl Played {
    /// Share of all stages' time in which they do nothing.
    pub fn bubble(&self) -> f64 {
        let busy: f64 = self.spans.iter().flatten().map(|s| s.end - s.start).sum();
        1.0 - busy / (self.makespan * self.spans.len() as f64)
    }
}

/// Plays `lists` with as many micro-batches as their actions name.
///
/// # Errors
/// [`Exit::Internal`]: an action is missing, doubled or on a stage that does not have the chunk; stages wait for each
/// other for ever; or a chunk's gradients are not added up in the order of the micro-batches.
pub fn play(lists: &Lists, costs: &Costs) -> Result<Played> {
    let chunks = costs.forward.len();
    complete(lists, chunks)?;
    let mut arrival: HashMap<Parcel, f64> = HashMap::new();
    let mut spans: Vec<Vec<TimeSpan>> = lists.iter().map(|l| Vec::with_capacity(l.len())).collect();
    loop {
        let mut moved = false;
        for (stage, list) in lists.iter().enumerate() {
            while let Some(&action) = list.get(spans[stage].len()) {
                let ready = match action.input(chunks) {
                    Some(parcel) => match arrival.get(&parcel) {
                        Some(&at) => at,
                        None => break,
                    },
                    None => 0.0,
                };
                let start = spans[stage].last().map_or(0.0, |s| s.end).max(ready);
                let end = start + costs.time(action);
                if let Some(parcel) = action.output(chunks) {
                    let near = parcel.to % lists.len() == stage;
                    arrival.insert(parcel, if near { end } else { end + costs.transfer });
                }
                spans[stage].push(TimeSpan { action, start, end });
                moved = true;
            }
        }
        if !moved {
            break;
        }
    }
    let stuck: Vec<String> = lists
        .iter()
        .zip(&spans)
        .enumerate()
        .filter_map(|(stage, (list, done))| list.get(done.len()).map(|a| format!("stage {stage} at {a:?}")))
        .collect();
    if !stuck.is_empty() {
        return Err(wrong(format!("stages wait for each other for ever: {}", stuck.join(", "))));
    }
    let makespan = spans.iter().flatten().map(|s| s.end).fold(0.0, f64::max);
    let peak = lists.iter().map(|l| peak(l, &costs.kept)).collect();
    Ok(Played { spans, makespan, peak })
}

/// Whether every chunk passes every micro-batch forward and then backward, once, on its stage, in order.
fn complete(lists: &Lists, chunks: usize) -> Result<()> {
    let micros = lists.iter().flatten().map(|a| a.micro() + 1).max().unwrap_or(0);
    for (stage, list) in lists.iter().enumerate() {
        for chunk in (stage..chunks).step_by(lists.len()) {
            let of = |want: fn(&Action) -> bool| -> Vec<usize> {
                list.iter().filter(|a| a.chunk() == chunk && want(a)).map(|a| a.micro()).collect()
            };
            let forward = of(|a| matches!(a, Action::Forward { .. }));
            let input = of(|a| matches!(a, Action::Backward { .. } | Action::BackwardInput { .. }));
            let weight = of(|a| matches!(a, Action::Backward { .. } | Action::BackwardWeight { .. }));
            let all: Vec<usize> = (0..micros).collect();
            for (what, found) in [("forward", &forward), ("backward input", &input), ("backward weight", &weight)] {
                if *found != all {
                    return Err(wrong(format!("{what} of chunk {chunk} on stage {stage} comes as {found:?}")));
                }
            }
        }
        if let Some(stray) = list.iter().find(|a| a.chunk() % lists.len() != stage || a.chunk() >= chunks) {
            return Err(wrong(format!("{stray:?} does not belong on stage {stage} of {}", lists.len())));
        }
        let mut seen: HashMap<(usize, usize), u8> = HashMap::new();
        for &a in list {
            // 0 nothing, 1 forward, 2 input gradient, 3 all
            let state = seen.entry((a.chunk(), a.micro())).or_default();
            let (from, to) = match a {
                Action::Forward { .. } => (0, 1),
                Action::Backward { .. } => (1, 3),
                Action::BackwardInput { .. } => (1, 2),
                Action::BackwardWeight { .. } => (2, 3),
            };
            if *state != from {
                return Err(wrong(format!("{a:?} on stage {stage} comes before what it needs")));
            }
            *state = to;
        }
    }
    Ok(())
}

/// Most activations alive at once.
fn peak(list: &[Action], kept: &[f64]) -> f64 {
    let (mut now, mut most) = (0.0, 0.0f64);
    for a in list {
        match a {
            Action::Forward { chunk, .. } => now += kept[*chunk],
            Action::Backward { chunk, .. } | Action::BackwardWeight { chunk, .. } => now -= kept[*chunk],
            Action::BackwardInput { .. } => {}
        }
        most = most.max(now);
    }
    most
}

/// The schedule as text, a line a stage, a character every `tick`: the last digit of the micro-batch, in lines that start
/// with F, B and W for what is done with it; dots are idle time. Chunks beyond a stage's first are marked by letters
/// (micro-batch 0 is a).
pub fn timeline(played: &Played, tick: f64) -> String {
    let stages = played.spans.len();
    let mut out = String::new();
    for (stage, spans) in played.spans.iter().enumerate() {
        let columns = (played.makespan / tick).round() as usize;
        let (mut what, mut who) = (vec!['.'; columns], vec!['.'; columns]);
        for s in spans {
            let (letter, first) = match s.action {
                Action::Forward { .. } => ('F', '0'),
                Action::Backward { .. } | Action::BackwardInput { .. } => ('B', '0'),
                Action::BackwardWeight { .. } => ('W', '0'),
            };
            let base = if s.action.chunk() / stages % 2 == 1 { b'a' } else { first as u8 };
            for column in (s.start / tick).round() as usize..((s.end / tick).round() as usize).min(columns) {
                what[column] = letter;
                who[column] = (base + (s.action.micro() % 10) as u8) as char;
            }
        }
        let (what, who): (String, String) = (what.into_iter().collect(), who.into_iter().collect());
        out += &format!("stage {stage}  {what}\n         {who}\n");
    }
    out
}

fn wrong(fact: String) -> Error {
    Error::new(Exit::Internal, format!("this pipeline schedule cannot run: {fact}"))
}
