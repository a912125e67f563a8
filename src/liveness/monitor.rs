//! The two ranks that judge, the monitor everybody but itself and the deputy the monitor: accusations become one verdict.

use super::message::Probe;
use super::roster::Roster;
use super::slow::{self, Slow};
use super::stuck::{self, Blame};
use super::verdict::{Evidence, Reason, Suspect, Verdict};
use super::view::{ProbeTiming, View, WatchAction};
use crate::error::Exit;
use std::collections::{BTreeMap, HashSet};
use std::time::Duration;

/// Faults that come together are named together: at most this long, or a quarter of an interval, after the first.
const GATHER: Duration = Duration::from_millis(150);

#[derive(Clone, Copy, Debug)]
struct Accusation {
    reason: Reason,
    age: Duration,
}

/// Accusations so far.
#[derive(Default)]
pub(super) struct Judge {
    accused: BTreeMap<usize, Accusation>,
    decide_at: Option<Duration>,
    /// Ranks that reported here past the one they should report to, and when they last did.
    turned: BTreeMap<usize, Duration>,
    /// When ranks were first seen to be stuck.
    stuck_since: Option<(Vec<usize>, Duration)>,
    slow: Slow,
}

impl Judge {
    pub(super) fn accuse(&mut self, now: Duration, rank: usize, reason: Reason, age: Duration, timing: &ProbeTiming) {
        self.accused.entry(rank).or_insert(Accusation { reason, age });
        self.decide_at.get_or_insert(now + GATHER.min(timing.interval / 4));
    }

    pub(super) fn turned_here(&mut self, now: Duration, rank: usize) {
        self.turned.insert(rank, now);
    }

    /// This process slept: what it concluded from its own clock is void.
    pub(super) fn forget(&mut self) {
        self.accused.retain(|_, a| a.reason == Reason::Signal);
        self.stuck_since = None;
        if self.accused.is_empty() {
            self.decide_at = None;
        }
    }

    /// `round`: an interval has passed, and this is the monitor.
    pub(super) fn tick(&mut self, view: &View, now: Duration, round: bool) -> Vec<WatchAction> {
        if self.decide_at.is_some_and(|at| now >= at) {
            return vec![WatchAction::Verdict(Box::new(self.decide(view, now)))];
        }
        if !round {
            return Vec::new();
        }
        let probes = newest(view);
        if let Some(blame) = self.standstill(view, now, &probes) {
            return vec![WatchAction::Verdict(Box::new(stuck_verdict(view, now, blame)))];
        }
        let timing = &view.timing;
        let found = self.slow.look(&view.roster, &probes, timing.progress.slow_factor);
        match found.iter().find(|f| f.still && timing.progress.evict_slow) {
            Some(slow) => vec![WatchAction::Verdict(Box::new(slow_verdict(view, now, slow)))],
            None => found.into_iter().filter(|f| !f.still).map(WatchAction::Slow).collect(),
        }
    }

    fn decide(&mut self, view: &View, now: Duration) -> Verdict {
        let roster = &view.roster;
        let late = view.timing.late();
        let spoke =
            |&r: &usize| r == roster.rank || self.turned.get(&r).is_some_and(|&at| now.saturating_sub(at) <= late);
        let mut ranks: Vec<usize> = Vec::new();
        for (&rank, a) in &self.accused {
            let node = &roster.node(rank).ranks;
            // A leader that ended or hangs leaves ranks that turn here; a node that is gone leaves none.
            let whole = a.reason == Reason::MissedProbes && node[0] == rank && !node.iter().any(spoke);
            match whole {
                true => ranks.extend(node),
                false => ranks.push(rank),
            }
        }
        let (mut reason, mut age) = (Reason::MissedProbes, Duration::ZERO);
        if let Some(a) = self.accused.values().next() {
            (reason, age) = (a.reason, a.age);
        }
        if self.accused.values().any(|a| a.reason == Reason::Signal) {
            reason = Reason::Signal;
        }
        let heard = match view.is_monitor() {
            true => view.below.iter().filter(|(&r, s)| roster.is_leader(r) && s.age(now) <= late).count(),
            false => {
                self.turned.iter().filter(|(&r, &at)| roster.is_leader(r) && now.saturating_sub(at) <= late).count()
            }
        };
        silence(view, now, reason, ranks, age, heard + 1)
    }

    /// Ranks that have been to blame for two whole rounds of reports. Less would be hasty: at the moment at which a long
    /// write ends, the one that wrote is heard as awake while those that waited for it are still heard as standing.
    fn standstill(&mut self, view: &View, now: Duration, probes: &[Option<Probe>]) -> Option<Blame> {
        let stuck = probes.iter().flatten().any(Probe::is_stuck);
        let blame = stuck.then(|| stuck::blame(&view.wires, probes)).flatten();
        let Some(blame) = blame else {
            self.stuck_since = None;
            return None;
        };
        let since = match &self.stuck_since {
            Some((ranks, since)) if *ranks == blame.ranks => *since,
            _ => {
                self.stuck_since = Some((blame.ranks.clone(), now));
                now
            }
        };
        (now > since && now >= since + 2 * view.timing.interval).then_some(blame)
    }
}

/// The newest probe of each rank, as far as it is known.
fn newest(view: &View) -> Vec<Option<Probe>> {
    let mut out = vec![None; view.roster.size()];
    for (&rank, heard) in &view.board {
        out[rank] = Some(heard.probe);
    }
    out
}

/// A verdict about ranks that are not heard any more, or have ended.
pub(super) fn silence(
    view: &View, now: Duration, reason: Reason, ranks: Vec<usize>, age: Duration, nodes_heard: usize,
) -> Verdict {
    let mut v = draft(view, reason, ranks);
    let who = describe(&view.roster, &v.ranks, v.whole_node);
    let timing = &view.timing;
    v.fact = match reason {
        Reason::Signal => format!("the process of {who} ended without a word"),
        _ => format!(
            "{who} silent for {:.1} s: {} probes missed at {} s",
            age.as_secs_f64(),
            timing.misses,
            timing.interval.as_secs_f64()
        ),
    };
    let named = |r: usize| v.ranks.binary_search(&r).is_ok();
    let above =
        |r: usize, s: Duration| Suspect { rank: r, node: view.roster.node(r).name.clone(), age_s: s.as_secs_f64() };
    let late = view.below.iter().map(|(&r, s)| (r, s.age(now))).filter(|(_, age)| *age > timing.late());
    v.evidence.suspects = late.filter(|(r, _)| !named(*r)).map(|(r, age)| above(r, age)).collect();
    v.evidence.age_s = (reason != Reason::Signal).then_some(age.as_secs_f64());
    v.evidence.limit_s = Some(timing.limit().as_secs_f64());
    v.evidence.nodes_heard = nodes_heard;
    v
}

fn stuck_verdict(view: &View, now: Duration, blame: Blame) -> Verdict {
    let mut v = draft(view, blame.reason, blame.ranks);
    let who = describe(&view.roster, &v.ranks, false);
    let first = v.ranks.first().and_then(|r| view.board.get(r));
    let (stuck, limit) = first.map_or((0.0, 0.0), |h| (h.probe.stuck_ms as f64 / 1e3, h.probe.limit_ms as f64 / 1e3));
    let stuck = stuck + first.map_or(0.0, |h| now.saturating_sub(h.at).as_secs_f64());
    let waiting = blame.waiting.iter().filter(|w| !w.waits_for.is_empty()).count();
    v.fact = match v.reason {
        Reason::SkippedCollective => format!("{who} left a collective out: {waiting} ranks wait in a ring"),
        Reason::WireStalled => format!("{who} are all inside one collective for {stuck:.1} s and none comes out"),
        _ => format!(
            "{who} made no progress for {stuck:.1} s in step {}, phase {:?}, and {waiting} ranks wait; the limit is \
             {limit:.1} s",
            v.step + 1,
            v.phase
        ),
    };
    v.evidence.age_s = Some(stuck);
    v.evidence.limit_s = Some(limit);
    v.evidence.waiting = blame.waiting;
    v
}

fn slow_verdict(view: &View, _now: Duration, slow: &slow::SlowRank) -> Verdict {
    let mut v = draft(view, Reason::SlowNode, vec![slow.rank]);
    v.fact = format!(
        "{} takes {:.2} s for its own work of a step, the median is {:.2} s",
        describe(&view.roster, &v.ranks, false),
        slow.own.as_secs_f64(),
        slow.median.as_secs_f64()
    );
    v
}

fn draft(view: &View, reason: Reason, mut ranks: Vec<usize>) -> Verdict {
    let roster = &view.roster;
    ranks.sort_unstable();
    ranks.dedup();
    let mut seen = HashSet::new();
    let names = ranks.iter().map(|&r| roster.node(r).name.as_str());
    let nodes: Vec<String> = names.filter(|n| seen.insert(*n)).map(str::to_string).collect();
    let whole_node = reason == Reason::MissedProbes
        && ranks.iter().all(|&r| roster.node(r).ranks.iter().all(|o| ranks.binary_search(o).is_ok()));
    let last = ranks.first().and_then(|r| view.board.get(r)).or_else(|| view.board.get(&roster.rank));
    Verdict {
        attempt: roster.attempt,
        accuser: roster.rank,
        accuser_node: roster.node(roster.rank).name.clone(),
        reason,
        nodes,
        whole_node,
        step: last.map_or(0, |h| h.probe.step),
        phase: last.map_or(Default::default(), |h| h.probe.phase()),
        exit: Exit::Peer.code(),
        // The thread that writes it knows the time.
        time: jiff::Timestamp::UNIX_EPOCH,
        fact: String::new(),
        evidence: Evidence {
            interval_s: view.timing.interval.as_secs_f64(),
            misses: view.timing.misses,
            nodes_heard: 1,
            ..Default::default()
        },
        ranks,
    }
}

/// `rank 3 (n1)`, `node n1 (ranks 2, 3)`, `ranks 2, 3 and 5 more (n1, n2)`.
fn describe(roster: &Roster, ranks: &[usize], whole_node: bool) -> String {
    let mut names: Vec<&str> = ranks.iter().map(|&r| roster.node(r).name.as_str()).collect();
    names.dedup();
    let list = |all: &[&str]| match all.len() {
        0..=8 => all.join(", "),
        n => format!("{} and {} more", all[..8].join(", "), n - 8),
    };
    let numbers: Vec<String> = ranks.iter().map(|r| r.to_string()).collect();
    let numbers: Vec<&str> = numbers.iter().map(String::as_str).collect();
    let (rank_word, node_word) =
        (if ranks.len() == 1 { "rank" } else { "ranks" }, if names.len() == 1 { "node" } else { "nodes" });
    match whole_node {
        true => format!("{node_word} {} ({rank_word} {})", list(&names), list(&numbers)),
        false => format!("{rank_word} {} ({})", list(&numbers), list(&names)),
    }
}
