//! Who is to blame when ranks stand still: the one that the others wait for and that waits for nobody.
//!
//! A rank whose main thread waits for a collective waits for the ranks that have not entered it; one that waits for a
//! message waits for its sender. Following these edges from the stuck ranks leads to a rank without any (it is stuck by
//! itself), to ranks that are all inside the same collective (the wire), or into a ring: then somebody left a collective
//! out and is further in the program than the others.

use super::groups::WireGroups;
use super::message::Probe;
use super::verdict::Waiting;
use super::{Phase, Reason};
use std::collections::{BTreeMap, BTreeSet};

/// How many ranks a verdict lists as waiting, and of each how many that it waits for.
const LISTED: usize = 64;

/// The ranks to blame, and why.
#[derive(Clone, Debug, PartialEq)]
pub struct Blame {
    pub reason: Reason,
    pub ranks: Vec<usize>,
    pub waiting: Vec<Waiting>,
}

/// What one rank does.
#[derive(Clone, Copy)]
enum State {
    /// Its main thread waits for nobody.
    Alone,
    /// It waits for the message of this rank.
    Sender(usize),
    /// It waits for the first so many of its group on this wire, in the order in which [`Standing`] has them.
    Behind { wire: usize, group: usize, count: usize },
    /// It is inside a collective that all have entered.
    Together,
}

/// How the ranks of a group stand in the collectives of their wire. Counts start again at 0 after 2³², so they are compared
/// as differences from one of them; ranks of a group are never 2³¹ apart.
struct Standing {
    zero: u32,
    /// By collectives entered, fewest first; those of which nothing is known before all.
    order: Vec<(Option<i32>, usize)>,
    /// The most that any has left.
    left: Option<i32>,
    /// How many of `order` have been followed.
    followed: usize,
}

impl Standing {
    fn new(wire: usize, members: impl Iterator<Item = usize> + Clone, probes: &[Option<Probe>]) -> Standing {
        let zero = members.clone().find_map(|r| probes[r]).map_or(0, |p| p.entered[wire]);
        let count = |n: u32| n.wrapping_sub(zero) as i32;
        let left = members.clone().filter_map(|r| probes[r]).map(|p| count(p.left[wire])).max();
        let mut order: Vec<_> = members.map(|r| (probes[r].map(|p| count(p.entered[wire])), r)).collect();
        order.sort_unstable();
        Standing { zero, order, left, followed: 0 }
    }

    fn count(&self, n: u32) -> i32 {
        n.wrapping_sub(self.zero) as i32
    }
}

/// The judge's look at all ranks at one moment. Work and memory grow with the ranks, not with their pairs: a group is sorted
/// once, and the ranks that somebody waits for are a part of that order, of which each is followed once.
struct Scene<'a> {
    wires: &'a [WireGroups],
    probes: &'a [Option<Probe>],
    standings: BTreeMap<(usize, usize), Standing>,
    states: BTreeMap<usize, State>,
}

/// `None` while nobody to blame has passed its own limit: a rank in a long write holds the others for long, and that is no
/// fault. `probes`: the newest of every rank, by rank; `wires`: who shares which.
pub fn blame(wires: &[WireGroups], probes: &[Option<Probe>]) -> Option<Blame> {
    let stuck = (0..probes.len()).filter(|&r| probes[r].is_some_and(|p| p.is_stuck()));
    let mut scene = Scene { wires, probes, standings: BTreeMap::new(), states: BTreeMap::new() };
    scene.follow(stuck.collect());
    let states = &scene.states;
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
    let waiting = states.iter().filter_map(|(&r, s)| scene.waiting(r, s)).take(LISTED).collect();
    (!ranks.is_empty()).then_some(Blame { reason, ranks, waiting })
}

impl Scene<'_> {
    /// Finds the state of these ranks and of all that they wait for, directly or not.
    fn follow(&mut self, mut open: Vec<usize>) {
        while let Some(r) = open.pop() {
            if self.states.contains_key(&r) {
                continue;
            }
            let state = self.state(r);
            self.states.insert(r, state);
            match state {
                State::Sender(sender) => open.push(sender),
                State::Behind { wire, group, count } => {
                    let standing = self.standing(wire, group);
                    let new = standing.followed..count.max(standing.followed);
                    standing.followed = new.end;
                    open.extend(standing.order[new].iter().map(|(_, r)| r));
                }
                State::Alone | State::Together => {}
            }
        }
    }

    fn state(&mut self, rank: usize) -> State {
        self.waits(rank).unwrap_or(State::Alone)
    }

    /// What a rank waits for; `None`: nobody.
    fn waits(&mut self, rank: usize) -> Option<State> {
        let p = self.probes[rank]?;
        let wire = (p.blocked_wire as usize).checked_sub(1)?;
        let (entered, left) = (*p.entered.get(wire)?, p.left[wire]);
        let groups = self.wires.get(wire)?;
        let group = groups.group(rank)?;
        if let Some(peer) = (p.blocked_peer as usize).checked_sub(1) {
            return groups.at(group, peer).map(State::Sender);
        }
        // Its wire has not entered what it waits for.
        if entered == left {
            return None;
        }
        let standing = self.standing(wire, group);
        let (entered, left) = (Some(standing.count(entered)), Some(standing.count(left)));
        Some(match standing.order.partition_point(|(n, _)| *n < entered) {
            // The others came out of it.
            0 if standing.left > left => return None,
            0 => State::Together,
            count => State::Behind { wire, group, count },
        })
    }

    fn standing(&mut self, wire: usize, group: usize) -> &mut Standing {
        let (probes, wires) = (self.probes, self.wires);
        let new = || Standing::new(wire, wires[wire].members(group), probes);
        self.standings.entry((wire, group)).or_insert_with(new)
    }

    fn waiting(&self, rank: usize, state: &State) -> Option<Waiting> {
        let p = self.probes[rank]?;
        let wire = (p.blocked_wire as usize).checked_sub(1)?;
        let waits_for = match state {
            State::Sender(sender) => vec![*sender],
            State::Behind { wire, group, count } => {
                let order = &self.standings[&(*wire, *group)].order[..*count];
                let mut first: Vec<usize> = order.iter().map(|(_, r)| *r).take(LISTED).collect();
                first.sort_unstable();
                first
            }
            State::Alone | State::Together => Vec::new(),
        };
        let name = self.wires.get(wire).map_or("?", |w| &w.name).to_string();
        let operation = p.entered.get(wire).copied().unwrap_or(0) as u64;
        Some(Waiting { rank, step: p.step, phase: p.phase(), wire: name, operation, waits_for })
    }
}

/// The ranks furthest in the program: step, then phase.
fn furthest(probes: &[Option<Probe>], ring: &[usize]) -> Vec<usize> {
    let place = |r: usize| probes[r].map_or((0, Phase::Start), |p| (p.step, p.phase()));
    let last = ring.iter().map(|&r| place(r)).max();
    let first: BTreeSet<usize> = ring.iter().copied().filter(|&r| Some(place(r)) == last).collect();
    first.into_iter().collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::world::WireMembers;

    const CONTROL: usize = 0;
    const DATA: usize = 1;
    const PIPELINE: usize = 2;

    /// Control, then two wires whose groups are given by `f`.
    fn wires(size: usize, data: fn(usize) -> (u64, usize), pipeline: fn(usize) -> (u64, usize)) -> Vec<WireGroups> {
        let table = |name: &str, f: fn(usize) -> (u64, usize)| {
            WireGroups::new(&WireMembers { name: name.into(), places: (0..size).map(f).collect() })
        };
        vec![table("control", |r| (0, r)), table("data", data), table("pipeline", pipeline)]
    }

    fn flat(size: usize) -> Vec<WireGroups> {
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
    fn counts_that_have_started_again_at_zero() {
        let last = u32::MAX;
        let at = |r, n: u32| inside(stuck(r, Phase::Reduce), DATA, n);
        let turned = |r| {
            let mut p = stuck(r, Phase::Reduce).unwrap();
            (p.entered[DATA], p.left[DATA], p.blocked_wire) = (0, last, DATA as u32 + 1);
            Some(p)
        };
        // All inside the same one, whose number is 0 again.
        assert_eq!(found(&[turned(0), turned(1)]), Some((Reason::WireStalled, vec![0, 1])));
        // One has not entered it.
        let mut late = stuck(2, Phase::Backward).unwrap();
        (late.entered[DATA], late.left[DATA]) = (last, last);
        assert_eq!(found(&[turned(0), turned(1), Some(late)]), Some((Reason::NoProgress, vec![2])));
        // One is still inside the one before, which the others have left.
        assert_eq!(found(&[turned(0), turned(1), at(2, last)]), Some((Reason::NoProgress, vec![2])));
    }

    #[test]
    fn ranks_that_were_never_heard_are_waited_for() {
        let probes = [inside(stuck(0, Phase::Reduce), DATA, 1), None, inside(stuck(2, Phase::Reduce), DATA, 2)];
        let b = blame(&flat(3), &probes).unwrap();
        assert_eq!((b.reason, b.ranks), (Reason::NoProgress, vec![1]));
        assert_eq!([&b.waiting[0].waits_for, &b.waiting[1].waits_for], [&vec![1], &vec![0, 1]]);
    }

    #[test]
    fn nobody_stuck_nobody_to_blame() {
        assert_eq!(found(&[Some(Probe::default()), None]), None);
    }
}
