//! Latency and bandwidth between pairs of hosts, in rounds in which every host has one partner.

use super::facts::LinkFacts;
use super::watchdog::Watchdog;
use crate::error::Result;
use crate::world::World;
use std::time::{Duration, Instant};

/// Round trips of one byte with a partner, as many as fit into [`TRIPS_TIME`].
const TRIPS: usize = 40;
const TRIPS_TIME: Duration = Duration::from_millis(500);
/// Bytes of a first exchange, by which the size of those that count is chosen.
const TRY: usize = 64 << 10;
/// Largest exchange, and how long one may take.
const MOST: usize = 8 << 20;
const EXCHANGE_S: f64 = 0.1;
/// Exchanges that count; the best is taken.
const EXCHANGES: usize = 2;
/// Up to so many hosts every pair meets.
const ALL_PAIRS: usize = 8;

/// Rounds among `n` hosts: all pairs where they are few, else twice the logarithm, so that a host with one bad link is told
/// from a bad host.
pub fn rounds(n: usize) -> usize {
    match n {
        0 | 1 => 0,
        n if n <= ALL_PAIRS => n.next_multiple_of(2) - 1,
        n => 2 * super::clock::rounds(n),
    }
}

/// Whom `me` meets in `round`: the circle method of round-robin tournaments. Nobody meets twice within n - 1 rounds.
pub fn partner(me: usize, round: usize, n: usize) -> Option<usize> {
    let last = n.next_multiple_of(2) - 1;
    if last == 0 {
        return None;
    }
    let round = round % last;
    let other = match me == last {
        true => round,
        false => match (2 * round + last - me) % last {
            other if other == me => last,
            other => other,
        },
    };
    (other < n && other != me).then_some(other)
}

/// Measures the link to each partner in turn; the end with the lower index has the result.
pub fn measure(
    world: &World, leaders: &[usize], names: &[String], me: usize, partners: impl Iterator<Item = usize>,
    dog: &Watchdog,
) -> Result<Vec<LinkFacts>> {
    let mut found = Vec::new();
    for peer in partners {
        dog.now("links", Some(&names[peer]));
        match me < peer {
            true => found.push(lead(world, leaders[peer], peer)?),
            false => follow(world, leaders[peer])?,
        }
    }
    Ok(found)
}

fn lead(world: &World, rank: usize, peer: usize) -> Result<LinkFacts> {
    let mut trips = Vec::new();
    let (mut word, mut room) = (vec![1u8], vec![0u8]);
    let began = Instant::now();
    // the first trip may make the connection, and waits until the peer is here
    for trip in 0..=TRIPS {
        let last = trip == TRIPS || trip > 1 && began.elapsed() > TRIPS_TIME;
        word[0] = u8::from(!last);
        let start = Instant::now();
        word = world.send_to(rank, word)?;
        room = world.receive_from(rank, room)?;
        if trip > 0 {
            trips.push(start.elapsed().as_secs_f64());
        }
        if last {
            break;
        }
    }
    let first = exchange(world, rank, TRY)?;
    let size = ((TRY as f64 / first * EXCHANGE_S) as usize).clamp(TRY, MOST);
    world.send_to(rank, (size as u64).to_le_bytes().to_vec())?;
    let mut best = f64::MAX;
    for _ in 0..EXCHANGES {
        best = best.min(exchange(world, rank, size)?);
    }
    trips.sort_by(f64::total_cmp);
    Ok(LinkFacts {
        peer,
        latency_s: trips[0] / 2.0,
        mean_s: trips.iter().sum::<f64>() / trips.len() as f64 / 2.0,
        bandwidth: size as f64 / best,
    })
}

fn follow(world: &World, rank: usize) -> Result<()> {
    let mut word = vec![1u8];
    while word[0] != 0 {
        word = world.receive_from(rank, word)?;
        let more = word[0];
        word = world.send_to(rank, word)?;
        word[0] = more;
    }
    exchange(world, rank, TRY)?;
    let size = world.receive_from(rank, vec![0; 8])?;
    let size = u64::from_le_bytes(size[..8].try_into().unwrap_or_default()) as usize;
    for _ in 0..EXCHANGES {
        exchange(world, rank, size.min(MOST))?;
    }
    Ok(())
}

/// Seconds for `size` bytes each way, until both ends have them: what is sent may lie in this host's buffers for long, so each
/// end says when its part has come.
fn exchange(world: &World, rank: usize, size: usize) -> Result<f64> {
    let (bytes, room) = (vec![1u8; size], vec![0u8; size]);
    let began = Instant::now();
    world.exchange_with(rank, bytes, room)?;
    world.exchange_with(rank, vec![1], vec![0])?;
    Ok(began.elapsed().as_secs_f64().max(1e-9))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn every_round_is_a_matching_and_no_pair_meets_twice() {
        for n in 1..40usize {
            let mut met = BTreeSet::new();
            let whole = n.next_multiple_of(2) - 1;
            for round in 0..whole {
                for me in 0..n {
                    let Some(other) = partner(me, round, n) else { continue };
                    assert_eq!(partner(other, round, n), Some(me), "{me} of {n} in round {round}");
                    assert!(me > other || met.insert((me, other)), "{me} and {other} of {n} meet again");
                }
            }
            assert_eq!(met.len(), n * (n - 1) / 2, "{n}");
        }
    }

    #[test]
    fn rounds_grow_with_the_logarithm() {
        let all: Vec<usize> = [1, 2, 3, 4, 8, 9, 2048, 16384].into_iter().map(rounds).collect();
        assert_eq!(all, [0, 1, 3, 3, 7, 8, 22, 28]);
    }
}
