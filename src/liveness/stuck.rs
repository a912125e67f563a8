//! Who is to blame when ranks stand still: the one that the others wait for and that waits for nobody.
//!
//! A rank whose main thread waits for a collective waits for the ranks that have not entered it; one that waits for a
//! message waits for its sender. Following these edges from the stuck ranks leads to a rank without any (it is stuck by
//! itself), to ranks that are all inside the same collective (the wire), or into a ring: then somebody left a collective
//! out and is further in the program than the others.

use super::message::Probe;
use super::verdict::Waiting;
use super::{Phase, Reason};
use crate::world::WireMembers;
use std::collections::{BTreeMap, BTreeSet};

/// The ranks to blame, and why.
#[derive(Clone, Debug, PartialEq)]
pub struct Blame {
    pub reason: Reason,
    pub ranks: Vec<usize>,
    pub waiting: Vec<Waiting>,
}

/// What one rank does.
enum State {
    /// Its main thread waits for nobody.
    Alone,
    /// It waits for these ranks.
    Waits(Vec<usize>),
    /// It is inside a collective that all have entered.
    Together,
}

/// `None` while nobody to blame has passed its own limit: a rank in a long write holds the others for long, and that is no
/// fault. `probes`: the newest of every rank, by rank; `wires`: who shares which.
pub fn blame(wires: &[WireMembers], probes: &[Option<Probe>]) -> Option<Blame> {
    let stuck: Vec<usize> = (0..probes.len()).filter(|&r| probes[r].is_some_and(|p| p.is_stuck())).collect();
    let mut states = BTreeMap::new();
    let mut open = stuck.clone();
    while let Some(r) = open.pop() {
        if states.contains_key(&r) {
            continue;
        }
        let state = state(wires, probes, r);
        if let State::Waits(others) = &state {
            open.extend(others);
        }
        states.insert(r, state);
    }
    let over = |r: &usize| probes[*r].is_none_or(|p| p.is_stuck());
    let ends =
        |want: fn(&State) -> bool| -> Vec<usize> { states.iter().filter(|(_, s)| want(s)).map(|(r, _)| *r).collect() };
    let alone = ends(|s| matches!(s, State::Alone));
    let together = ends(|s| matches!(s, State::Together));
    let (reason, ranks) = if !alone.is_empty() {
        (Reason::NoProgress, alone)
    } else if !together.is_empty() {
        (Reason::WireStalled, together)
    } else {
        let ring: Vec<usize> = states.keys().copied().collect();
        (Reason::SkippedCollective, furthest(probes, &ring))
    };
    let ranks: Vec<usize> = ranks.into_iter().filter(over).collect();
    let waiting = states.iter().filter_map(|(&r, s)| waiting(wires, probes, r, s)).take(64).collect();
    (!ranks.is_empty()).then_some(Blame { reason, ranks, waiting })
}

fn state(wires: &[WireMembers], probes: &[Option<Probe>], rank: usize) -> State {
    let Some(p) = &probes[rank] else { return State::Alone };
    let Some(wire) = (p.blocked_wire as usize).checked_sub(1) else { return State::Alone };
    let Some(table) = wires.get(wire) else { return State::Alone };
    let own = table.places.get(rank).map(|p| p.0);
    let group: Vec<usize> =
        (0..probes.len()).filter(|&r| own.is_some() && table.places.get(r).map(|p| p.0) == own).collect();
    if let Some(peer) = (p.blocked_peer as usize).checked_sub(1) {
        let sender = group.iter().find(|&&r| table.places[r].1 == peer);
        return sender.map_or(State::Alone, |&r| State::Waits(vec![r]));
    }
    // Its wire has not entered what it waits for.
    if p.entered[wire] == p.left[wire] {
        return State::Alone;
    }
    let entered = |r: usize| probes[r].map_or(0, |p| p.entered[wire]);
    let behind: Vec<usize> = group.iter().copied().filter(|&r| entered(r) < p.entered[wire]).collect();
    let ahead = group.iter().any(|&r| probes[r].is_some_and(|o| o.left[wire] > p.left[wire]));
    match (behind.is_empty(), ahead) {
        (false, _) => State::Waits(behind),
        // The others came out of it.
        (true, true) => State::Alone,
        (true, false) => State::Together,
    }
}

/// The ranks furthest in the program: step, then phase.
fn furthest(probes: &[Option<Probe>], ring: &[usize]) -> Vec<usize> {
    let place = |r: usize| probes[r].map_or((0, Phase::Start), |p| (p.step, p.phase()));
    let last = ring.iter().map(|&r| place(r)).max();
    let first: BTreeSet<usize> = ring.iter().copied().filter(|&r| Some(place(r)) == last).collect();
    first.into_iter().collect()
}

fn waiting(wires: &[WireMembers], probes: &[Option<Probe>], rank: usize, state: &State) -> Option<Waiting> {
    let p = probes[rank]?;
    let wire = (p.blocked_wire as usize).checked_sub(1)?;
    let waits_for = match state {
        State::Waits(others) => others.iter().copied().take(64).collect(),
        _ => Vec::new(),
    };
    let name = wires.get(wire).map_or("?", |w| &w.name).to_string();
    let operation = p.entered.get(wire).copied().unwrap_or(0) as u64;
    Some(Waiting { rank, step: p.step, phase: p.phase(), wire: name, operation, waits_for })
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONTROL: usize = 0;
    const DATA: usize = 1;
    const PIPELINE: usize = 2;

    /// Control, then two wires whose groups are given by `f`.
    fn wires(size: usize, data: fn(usize) -> (u64, usize), pipeline: fn(usize) -> (u64, usize)) -> Vec<WireMembers> {
        let table = |name: &str, f: fn(usize) -> (u64, usize)| WireMembers {
            name: name.into(),
            places: (0..size).map(f).collect(),
        };
        vec![table("control", |r| (0, r)), table("data", data), table("pipeline", pipeline)]
    }

    fn flat(size: usize) -> Vec<WireMembers> {
        wires(size, |r| (0, r), |r| (r as u64, 0))
    }

    fn stuck(rank: u32, phase: Phase) -> Option<Probe> {
        Some(Probe { rank, step: 5, phase: phase as u32, stuck_ms: 40_000, limit_ms: 30_000, ..Default::default() })
    }

    /// Inside its `n`th collective of `wire`, waiting for it.
    fn inside(p: Option<Probe>, wire: usize, n: u32) -> Option<Probe> {
        let mut p = p?;
        (p.entered[wire], p.left[wire], p.blocked_wire) = (n, n - 1, wire as u32 + 1);
        Some(p)
    }

    fn found(probes: &[Option<Probe>]) -> Option<(Reason, Vec<usize>)> {
        blame(&flat(probes.len()), probes).map(|b| (b.reason, b.ranks))
    }

    #[test]
    fn the_one_that_never_came() {
        let late = stuck(2, Phase::Backward);
        let probes = [0, 1, 3].map(|r| inside(stuck(r, Phase::Reduce), DATA, 9));
        let probes = [probes[0], probes[1], late, probes[2]];
        assert_eq!(found(&probes), Some((Reason::NoProgress, vec![2])));
        let waiting = blame(&flat(4), &probes).unwrap().waiting;
        assert_eq!((waiting.len(), &waiting[0].waits_for, waiting[0].wire.as_str()), (3, &vec![2], "data"));
        assert_eq!((waiting[0].operation, waiting[0].phase), (9, Phase::Reduce));
        // Its communication thread may be inside an older collective meanwhile.
        let mut busy = inside(stuck(2, Phase::Backward), DATA, 8).unwrap();
        busy.blocked_wire = 0;
        assert_eq!(found(&[probes[0], probes[1], Some(busy), probes[3]]), Some((Reason::NoProgress, vec![2])));
    }

    #[test]
    fn a_long_write_of_one_rank_is_no_fault_of_it_or_the_others() {
        let waits = inside(stuck(1, Phase::Agree), CONTROL, 9);
        let mut writes = stuck(0, Phase::Save).unwrap();
        writes.limit_ms = 600_000;
        assert_eq!(found(&[Some(writes), waits]), None);
        writes.stuck_ms = 600_001;
        assert_eq!(found(&[Some(writes), waits]), Some((Reason::NoProgress, vec![0])));
    }

    #[test]
    fn a_rank_that_left_a_collective_out_is_ahead() {
        // Rank 1 went past the ninth reduction and asks everybody to agree.
        let mut ahead = inside(stuck(1, Phase::Agree), CONTROL, 6).unwrap();
        (ahead.entered[DATA], ahead.left[DATA]) = (8, 8);
        let behind = |r| {
            let mut p = inside(stuck(r, Phase::Reduce), DATA, 9).unwrap();
            (p.entered[CONTROL], p.left[CONTROL]) = (5, 5);
            Some(p)
        };
        let probes = [behind(0), Some(ahead), behind(2)];
        assert_eq!(found(&probes), Some((Reason::SkippedCollective, vec![1])));
    }

    #[test]
    fn a_wire_that_does_not_answer_blames_the_wire() {
        let probes = [0, 1, 2].map(|r| inside(stuck(r, Phase::Gather), DATA, 4));
        assert_eq!(found(&probes), Some((Reason::WireStalled, vec![0, 1, 2])));
        // Unless all but one came out of it.
        let mut out = inside(stuck(0, Phase::Agree), CONTROL, 2).unwrap();
        (out.entered[DATA], out.left[DATA]) = (4, 4);
        let probes = [Some(out), Some(Probe { rank: 1, ..out }), probes[2]];
        assert_eq!(found(&probes), Some((Reason::NoProgress, vec![2])));
    }

    #[test]
    fn a_chain_through_axes_and_messages_ends_at_its_cause() {
        // Two stages (pipeline) times two replicas (data), ranks 0 1 | 2 3: 3 waits for 1's sum, 1 for 0's message.
        let wires = wires(4, |r| (r as u64 % 2, r / 2), |r| (r as u64 / 2, r % 2));
        let mut p1 = stuck(1, Phase::Forward).unwrap();
        (p1.blocked_wire, p1.blocked_peer) = (PIPELINE as u32 + 1, 1);
        let p3 = inside(stuck(3, Phase::Reduce), DATA, 2);
        let mut p2 = stuck(2, Phase::Boundary).unwrap();
        p2.stuck_ms = 0;
        let b = blame(&wires, &[stuck(0, Phase::Data), Some(p1), Some(p2), p3]).unwrap();
        assert_eq!((b.reason, b.ranks), (Reason::NoProgress, vec![0]));
        assert_eq!(b.waiting[0].waits_for, vec![0]);
        assert_eq!(b.waiting[1].waits_for, vec![1]);
    }

    #[test]
    fn nobody_stuck_nobody_to_blame() {
        assert_eq!(found(&[Some(Probe::default()), None]), None);
    }
}
