//! The control plane of [`World`]: small host messages between all ranks.
//!
//! Every call is collective: all ranks make the same calls in the same order, from one thread per `World`
//! ([`World::duplicate`] gives another thread its own). Errors: [`Exit::Peer`].

use crate::error::{Error, Exit, Result};
use crate::world::meters::WireMeter;
use crate::world::{Op, Traffic, World};
use serde::de::DeserializeOwned;
use serde::Serialize;
use serde_json::{json, Value};

impl World {
    /// Runs one call of the control plane where liveness sees it.
    pub(crate) fn control<T>(&self, run: impl FnOnce() -> Result<T>) -> Result<T> {
        let meter = WireMeter::control(&self.meters, self.rank());
        meter.blocked(None, || meter.collective(&self.stop, run))
    }

    /// Returns when every rank has called it.
    pub fn barrier(&self) -> Result<()> {
        self.control(|| self.comm.barrier(&self.stop))
    }

    /// On `root` every rank's bytes in rank order; `None` elsewhere. What a rank passes on is its part of the tree's.
    pub fn gather_bytes(&self, mine: &[u8], root: usize) -> Result<Option<Vec<Vec<u8>>>> {
        self.control(|| self.comm.gather_bytes(mine, root, &self.stop))
    }

    /// Every rank ends with `root`'s bytes; what the others pass is ignored.
    pub fn broadcast_bytes(&self, bytes: Vec<u8>, root: usize) -> Result<Vec<u8>> {
        self.control(|| self.comm.broadcast_bytes(bytes, root, &self.stop))
    }

    /// Every rank's bytes, in rank order, on every rank: as much memory on each as the world has ranks, so for little.
    pub fn all_gather_bytes(&self, mine: &[u8]) -> Result<Vec<Vec<u8>>> {
        self.control(|| self.comm.all_gather_bytes(mine, &self.stop))
    }

    /// Element by element over all ranks, in an order that follows from the size of the world alone (up to 16 ranks: rank order;
    /// above: in blocks of 16, then over blocks): the same bits on every rank and in every run.
    pub fn all_reduce_f64(&self, mine: &[f64], op: Op) -> Result<Vec<f64>> {
        let one = move |a: f64, b: f64| match op {
            Op::Sum => a + b,
            Op::Max if a >= b || a.is_nan() => a,
            Op::Max => b,
        };
        let fold = |all: &mut [f64], next: &[f64]| all.iter_mut().zip(next).for_each(|(a, b)| *a = one(*a, *b));
        self.control(|| self.comm.all_reduce(mine, fold, &self.stop))
    }

    /// The most that any one rank has sent over the control plane, before this call: messages, bytes, peers.
    pub fn most_sent(&self) -> Result<Traffic> {
        let mine = Traffic::control();
        let fold = |all: &mut [u64], next: &[u64]| all.iter_mut().zip(next).for_each(|(a, b)| *a = (*a).max(*b));
        let mine = [mine.messages, mine.bytes, mine.peers];
        let most = self.control(|| self.comm.all_reduce(&mine, fold, &self.stop))?;
        Ok(Traffic { messages: most[0], bytes: most[1], peers: most[2] })
    }

    /// How many ranks say so, and the lowest of them.
    fn who(&self, so: bool) -> Result<(usize, usize)> {
        let mine = if so { [1, self.rank() as u64] } else { [0, u64::MAX] };
        let fold = |all: &mut [u64], next: &[u64]| {
            all[0] += next[0];
            all[1] = all[1].min(next[1]);
        };
        let all = self.control(|| self.comm.all_reduce(&mine, fold, &self.stop))?;
        Ok((all[0] as usize, all[1] as usize))
    }

    /// The ranks go on together or not at all: if `mine` is an error on any rank, every rank gets an error that names
    /// the ranks and repeats the lowest one's. Call it wherever one rank alone may fail (files, devices).
    pub fn agree<T>(&self, mine: Result<T>) -> Result<T> {
        if self.size() == 1 {
            return mine;
        }
        let (failed, first) = self.who(mine.is_err())?;
        if failed == 0 {
            return mine;
        }
        let packed = match &mine {
            Err(e) if self.rank() == first => self.packed(e).to_string().into(),
            _ => Vec::new(),
        };
        let v: Value = serde_json::from_slice(&self.broadcast_bytes(packed, first)?).unwrap_or(Value::Null);
        let mut e = unpacked(&v);
        if failed == 1 {
            (e.rank, e.host) = (Some(first), v["host"].as_str().map(str::to_string));
        }
        Err(e.context(match failed {
            n if n == self.size() => format!("all {n} ranks"),
            1 => format!("rank {first} ({})", v["host"].as_str().unwrap_or("unknown host")),
            n => format!("rank {first} and {} more of {}", n - 1, self.size()),
        }))
    }

    /// What rank 0 finds out for all, on every rank; an error too, which is then no rank's own. The others do not look.
    pub fn from_first<T: Serialize + DeserializeOwned>(&self, find: impl FnOnce() -> Result<T>) -> Result<T> {
        let broken = |e: serde_json::Error| Error::new(Exit::Internal, format!("what rank 0 told all: {e}"));
        let told = match (self.rank() == 0).then(find) {
            None => Vec::new(),
            Some(Ok(found)) => serde_json::to_vec(&json!({ "found": found })).map_err(broken)?,
            Some(Err(e)) => self.packed(&e).to_string().into(),
        };
        let mut v: Value = serde_json::from_slice(&self.broadcast_bytes(told, 0)?).map_err(broken)?;
        match v.get_mut("found") {
            Some(found) => serde_json::from_value(found.take()).map_err(broken),
            None => Err(unpacked(&v)),
        }
    }

    fn packed(&self, e: &Error) -> Value {
        json!({ "exit": e.exit.code(), "fact": e.fact, "hint": e.hint, "problems": e.problems, "host": self.host() })
    }
}

/// An error that all ranks share.
fn unpacked(v: &Value) -> Error {
    let exit = Exit::TABLE.iter().map(|row| row.0).find(|e| Some(e.code() as i64) == v["exit"].as_i64());
    let mut e = Error::new(exit.unwrap_or(Exit::Internal), v["fact"].as_str().unwrap_or("unknown error"));
    e.hint = v["hint"].as_str().map(str::to_string);
    e.problems =
        v["problems"].as_array().into_iter().flatten().filter_map(|p| p.as_str().map(str::to_string)).collect();
    e.agreed = true;
    e
}
