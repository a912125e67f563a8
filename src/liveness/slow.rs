//! Ranks that are alive and moving, and hold everybody up: their own work takes much longer than others' of the same kind.

use super::message::Probe;
use super::roster::Roster;
use crate::topology::{Axis, Topology};
use std::collections::BTreeMap;
use std::time::Duration;

/// Steps in a row above the factor before a rank is called slow.
const STRIKES: u32 = 5;
/// Differences below this say nothing.
const LEAST: u32 = 20_000;

/// Counts slow steps of each rank.
#[derive(Default)]
pub struct Slow {
    /// Last step looked at, and strikes in a row.
    ranks: BTreeMap<usize, (u64, u32)>,
}

/// A rank found slow.
#[derive(Clone, Debug, PartialEq)]
pub struct SlowRank {
    pub rank: usize,
    pub own: Duration,
    pub median: Duration,
    /// It has been so for twice as long, and is not reported for the first time.
    pub still: bool,
}

impl Slow {
    /// A look at the newest probe of every rank. Only ranks of the same pipeline stage have the same work.
    pub fn look(&mut self, roster: &Roster, probes: &[Option<Probe>], factor: f64) -> Vec<SlowRank> {
        let mut stages: BTreeMap<usize, Vec<Probe>> = BTreeMap::new();
        for p in probes.iter().flatten().filter(|p| p.own_us > 0) {
            let topology = Topology { rank: p.rank as usize, sizes: roster.sizes };
            stages.entry(topology.coord(Axis::Pipeline)).or_default().push(*p);
        }
        let mut out = Vec::new();
        for peers in stages.values().filter(|p| p.len() >= 2) {
            let mut times: Vec<u32> = peers.iter().map(|p| p.own_us).collect();
            times.sort_unstable();
            // Of two, the faster.
            let median = times[(times.len() - 1) / 2];
            for p in peers {
                let (seen, strikes) = self.ranks.entry(p.rank as usize).or_default();
                if p.step <= *seen {
                    continue;
                }
                *seen = p.step;
                let slow = p.own_us as f64 > factor * median as f64 && p.own_us - median > LEAST;
                *strikes = if slow { *strikes + 1 } else { 0 };
                if *strikes == STRIKES || *strikes == 2 * STRIKES {
                    let time = |us| Duration::from_micros(us as u64);
                    let still = *strikes > STRIKES;
                    out.push(SlowRank { rank: p.rank as usize, own: time(p.own_us), median: time(median), still });
                }
            }
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::super::roster::tests::grid;
    use super::*;

    #[test]
    fn slow_for_five_steps_is_reported_once_and_recovers() {
        let roster = grid(0, 4, 1);
        let mut slow = Slow::default();
        let mut found = |step: u64, own_ms: [u32; 4]| {
            let probe = |r: usize| Some(Probe { rank: r as u32, step, own_us: own_ms[r] * 1000, ..Default::default() });
            slow.look(&roster, &[0, 1, 2, 3].map(probe), 1.5).into_iter().map(|f| (f.rank, f.still)).collect::<Vec<_>>()
        };
        let slowed = [1000, 1010, 1800, 990];
        let first: Vec<_> = (1..=5).map(|s| found(s, slowed)).collect();
        assert_eq!(first.concat(), [(2, false)]);
        assert_eq!(first[4], [(2, false)]);
        assert_eq!(found(5, slowed), [], "the same step again");
        assert_eq!((6..=20).flat_map(|s| found(s, slowed)).collect::<Vec<_>>(), [(2, true)]);
        assert_eq!(found(21, [1000; 4]), []);
        assert_eq!((22..=26).flat_map(|s| found(s, slowed)).collect::<Vec<_>>(), [(2, false)]);
        // Tiny steps differ by chance.
        assert_eq!((30..=40).flat_map(|s| found(s, [2, 2, 10, 2])).collect::<Vec<_>>(), []);
    }

    #[test]
    fn stages_have_different_work() {
        let places: Vec<_> = (0..4).map(|r| (r, format!("n{r}"))).collect();
        let roster = Roster::new(0, 0, [1, 1, 2, 2], &places);
        let mut slow = Slow::default();
        for step in 1..20 {
            // Ranks 1 and 3 hold the last stage.
            let own = [1000, 3000, 1000, 3000];
            let probe = |r: usize| Some(Probe { rank: r as u32, step, own_us: own[r] * 1000, ..Default::default() });
            assert_eq!(slow.look(&roster, &[0, 1, 2, 3].map(probe), 1.5), []);
        }
    }
}
