//! Clocks of all hosts against each other, by round trips along a binomial tree: log2 of the hosts' number of rounds.

use super::facts::ClockFacts;
use super::watchdog::Watchdog;
use crate::error::Result;
use crate::world::World;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Round trips with the parent; the shortest counts (Cristian, Probabilistic clock synchronization, 1989).
const TRIPS: usize = 24;

/// Rounds among `n` hosts.
pub fn rounds(n: usize) -> usize {
    n.next_power_of_two().trailing_zeros() as usize
}

/// `me` of the hosts whose ranks are `leaders` asks its parent and answers its children; host 0 has no parent.
pub fn measure(
    world: &World, leaders: &[usize], names: &[String], me: usize, dog: &Watchdog,
) -> Result<Option<ClockFacts>> {
    let n = leaders.len();
    let mut found = None;
    for d in (0..rounds(n)).map(|r| 1 << r) {
        if me % (2 * d) == d {
            let parent = me - d;
            dog.now("clock", Some(&names[parent]));
            found = Some(ask(world, leaders[parent], parent)?);
        } else if me.is_multiple_of(2 * d) && me + d < n {
            dog.now("clock", Some(&names[me + d]));
            answer(world, leaders[me + d])?;
        }
    }
    Ok(found)
}

fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO).as_secs_f64()
}

fn ask(world: &World, rank: usize, parent: usize) -> Result<ClockFacts> {
    let mut best: Option<(f64, f64)> = None;
    let (mut word, mut room) = (vec![1u8], vec![0u8; 8]);
    for _ in 0..TRIPS {
        let (sent, began) = (now(), Instant::now());
        word = world.send_to(rank, word)?;
        room = world.receive_from(rank, room)?;
        let trip = began.elapsed().as_secs_f64();
        let theirs = f64::from_le_bytes(room[..8].try_into().unwrap_or_default());
        if best.is_none_or(|(shortest, _)| trip < shortest) {
            best = Some((trip, theirs - (sent + trip / 2.0)));
        }
    }
    let (trip, ahead_s) = best.unwrap_or_default();
    Ok(ClockFacts { parent, ahead_s, error_s: trip / 2.0 })
}

fn answer(world: &World, rank: usize) -> Result<()> {
    let mut word = vec![0u8];
    for _ in 0..TRIPS {
        word = world.receive_from(rank, word)?;
        world.send_to(rank, now().to_le_bytes().to_vec())?;
    }
    Ok(())
}
