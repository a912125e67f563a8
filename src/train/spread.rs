//! How much the ranks' own work of a step differs: data, forward and backward passes, time spent waiting for others left out.

use crate::error::Result;
use crate::world::{Op, World};
use std::time::Duration;

/// Seconds of own work in one step, over all ranks.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Spread {
    pub min: f64,
    pub mean: f64,
    pub max: f64,
    /// The rank with the most; of several the highest.
    pub slowest: usize,
}

/// Ranks that fit beside microseconds in a double's 53 bits: 2^20, which leaves 2^33 µs = 2.4 hours.
const RANKS: f64 = (1u64 << 20) as f64;
const LONGEST_US: f64 = ((1u64 << 33) - 1) as f64;

impl Spread {
    /// Collective. `own`: this rank's; `sum`: of all ranks, seconds. `None` with one rank, or with more than 2^20.
    pub fn over(world: &World, own: Duration, sum: f64) -> Result<Option<Spread>> {
        let size = world.size();
        if size < 2 || size as f64 > RANKS {
            return Ok(None);
        }
        let most = world.all_reduce_f64(&[packed(own, world.rank()), -own.as_secs_f64()], Op::Max)?;
        let (max, slowest) = unpacked(most[0]);
        Ok(Some(Spread { min: -most[1], mean: sum / size as f64, max, slowest }))
    }
}

/// Time and rank in one number whose largest is the slowest rank's (as MPI_MAXLOC, in one reduction of doubles).
fn packed(own: Duration, rank: usize) -> f64 {
    (own.as_micros() as f64).min(LONGEST_US) * RANKS + rank as f64
}

fn unpacked(value: f64) -> (f64, usize) {
    let us = (value / RANKS).floor();
    (us / 1e6, (value - us * RANKS) as usize)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_largest_number_names_the_slowest_rank() {
        let us = Duration::from_micros;
        let all = [(us(1500), 3), (us(1501), 0), (us(7), (1 << 20) - 1)];
        let most = all.iter().map(|&(t, r)| packed(t, r)).fold(0.0, f64::max);
        assert_eq!(unpacked(most), (0.001501, 0));
        let far = unpacked(packed(Duration::from_secs(1 << 40), (1 << 20) - 1));
        assert_eq!(far, (LONGEST_US / 1e6, (1 << 20) - 1));
    }
}
