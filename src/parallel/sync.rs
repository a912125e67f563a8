//! Whether what should be equal is equal: a hash of every parameter, compared between the ranks that hold the same.
//!
//! Compared are whole units between replicas (ZeRO 0 to 2), parts between the copies of hybrid sharding, and slices that
//! several ranks of the tensor axis or two pipeline stages hold. Under stage 3 without copies every element lies on one
//! rank, and there is nothing to compare it with.

use super::Sharded;
use crate::error::{Error, Exit, Result};
use crate::layout::Unit;
use crate::wire::Wire;
use crate::world::World;
use tch::{Device, Kind, Tensor};

/// Compares bit for bit. Collective over the world.
///
/// A difference means that memory was corrupted on some rank, or a bug: [`Exit::Internal`], on every rank, with the first
/// thing that differs and, where most ranks agree, the world rank and host of those that do not.
pub fn sync_check(units: &mut Sharded, world: &World) -> Result<()> {
    units.settle()?;
    let mut found = Ok(());
    for group in comparisons(units) {
        let odd = group.compare(world)?;
        found = found.and(odd);
    }
    world.agree(found)
}

/// What [`sync_check`] cannot see with this sharding; `None` where it sees every parameter.
pub fn not_compared(units: &Sharded) -> Option<&'static str> {
    let s = units.sharding();
    (s.stage == 3 && s.group == s.replicas).then_some(
        "under parallel.zero 3 every parameter lies on one replica: the sync check compares only what the tensor axis and \
         tied stages hold twice",
    )
}

/// The same things on all ranks of one wire.
struct Group<'a> {
    wire: &'a dyn Wire,
    what: Vec<String>,
    hashes: Vec<i64>,
}

/// On every rank of a wire the same comparisons in the same order.
fn comparisons(units: &Sharded) -> Vec<Group<'_>> {
    let groups = units.groups();
    let mut out = Vec::new();
    // Stage 3 keeps parts, equal across copies; the other stages whole units, equal everywhere: inside first, then across.
    let mut replicas = vec![&groups.across];
    if units.sharding().stage < 3 {
        replicas.insert(0, &groups.shard);
    }
    let whole: Vec<_> = units.resident().map(|(u, t)| (format!("the parameters of {:?}", u.unit), hash(&t))).collect();
    for wire in replicas {
        let (what, hashes) = whole.iter().cloned().unzip();
        out.push(Group { wire: &**wire, what, hashes });
    }
    let owned: Vec<_> = units.owned().into_iter().chain(units.frozen()).collect();
    for (copies, wire) in &groups.copies {
        let mut group = Group { wire: &**wire, what: Vec::new(), hashes: Vec::new() };
        for o in &owned {
            for (p, r) in o.layout.pieces(&o.range).filter(|(p, _)| p.copies == *copies) {
                group.what.push(p.name.clone());
                group.hashes.push(hash(&o.part(&o.param, &(p.start + r.start..p.start + r.end))));
            }
        }
        out.push(group);
    }
    if let Some(wire) = &groups.tied {
        let tied = owned.iter().find(|o| o.layout.unit == Unit::Embedding);
        let hashes = tied.map(|o| hash(&o.param)).into_iter().collect();
        out.push(Group { wire: &**wire, what: vec!["the tied embedding".into()], hashes });
    }
    out.retain(|g| g.wire.size() > 1 && !g.hashes.is_empty());
    out
}

impl Group<'_> {
    /// The outer error is the wire's, the inner one a difference.
    fn compare(&self, world: &World) -> Result<Result<()>> {
        let n = self.hashes.len();
        let mine: Vec<i64> = self.hashes.iter().copied().chain(whereabouts(world)).collect();
        let all = Tensor::zeros([(mine.len() * self.wire.size()) as i64], (Kind::Int64, Device::Cpu));
        self.wire.all_gather(&Tensor::from_slice(&mine), &all)?.wait()?;
        let all = Vec::<i64>::try_from(&all)?;
        for (i, what) in self.what.iter().enumerate() {
            let column: Vec<i64> = all.chunks(mine.len()).map(|rank| rank[i]).collect();
            let name = |r: usize| name(&all[r * mine.len() + n..(r + 1) * mine.len()]);
            if let Some(who) = odd_ones(&column, name) {
                let fact = format!("{what} differ between {} ranks that hold the same: {who}", self.wire.size());
                return Ok(Err(Error::new(Exit::Internal, fact)
                    .hint("suspect memory or the network of those nodes; start again from a checkpoint")));
            }
        }
        Ok(Ok(()))
    }
}

/// World rank and host name in words of 8 bytes.
const HOST_WORDS: usize = 8;

fn whereabouts(world: &World) -> impl Iterator<Item = i64> {
    let mut host = [0u8; HOST_WORDS * 8];
    let n = world.host().len().min(host.len());
    host[..n].copy_from_slice(&world.host().as_bytes()[..n]);
    let words: Vec<i64> = host.chunks_exact(8).map(|c| c.iter().rev().fold(0, |w, &b| (w << 8) | b as i64)).collect();
    std::iter::once(world.rank() as i64).chain(words)
}

fn name(words: &[i64]) -> String {
    let bytes: Vec<u8> = words[1..].iter().flat_map(|w| w.to_le_bytes()).take_while(|&b| b != 0).collect();
    format!("{} ({})", words[0], String::from_utf8_lossy(&bytes))
}

/// Which entries are not what most are; `None` when all are equal.
fn odd_ones(column: &[i64], name: impl Fn(usize) -> String) -> Option<String> {
    let count = |x: i64| column.iter().filter(|&&y| y == x).count();
    let most = column.iter().copied().max_by_key(|&x| count(x))?;
    if count(most) == column.len() {
        return None;
    }
    let names = |which: &dyn Fn(i64) -> bool| {
        let who: Vec<String> = (0..column.len()).filter(|&r| which(column[r])).map(&name).collect();
        who.join(", ")
    };
    if 2 * count(most) <= column.len() {
        return Some(format!("no majority among ranks {}", names(&|_| true)));
    }
    Some(format!("rank {} against all others", names(&|x| x != most)))
}

fn hash(t: &Tensor) -> i64 {
    let host = t.to_device(Device::Cpu).contiguous();
    let bytes = host.numel() * host.kind().elt_size_in_bytes();
    // SAFETY: a contiguous host tensor of that many bytes, alive until after the hash.
    let raw = unsafe { std::slice::from_raw_parts(host.data_ptr().cast::<u8>(), bytes) };
    xxhash_rust::xxh3::xxh3_64(raw) as i64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rank_that_differs_is_named() {
        let odd = |column: &[i64]| odd_ones(column, |r| format!("{}", r + 10));
        assert_eq!(odd(&[5, 5, 5]), None);
        assert_eq!(odd(&[5, 7, 5, 8]).as_deref(), Some("no majority among ranks 10, 11, 12, 13"));
        assert_eq!(odd(&[5, 7, 5]).as_deref(), Some("rank 11 against all others"));
        assert_eq!(odd(&[5, 7]).as_deref(), Some("no majority among ranks 10, 11"));
    }

    #[test]
    fn hosts_survive_the_trip() {
        let mut words = vec![7];
        let mut bytes = [0u8; 64];
        bytes[..11].copy_from_slice("node-0117.x".as_bytes());
        words.extend(bytes.chunks(8).map(|c| i64::from_le_bytes(c.try_into().unwrap())));
        assert_eq!(name(&words), "7 (node-0117.x)");
    }
}
