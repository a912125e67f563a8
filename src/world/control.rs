//! The control plane of [`World`]: small host messages between all ranks.
//!
//! Every call is collective: all ranks make the same calls in the same order, from one thread per `World`
//! ([`World::duplicate`] gives another thread its own). Errors: [`Exit::Peer`].

use crate::error::{Error, Exit, Result};
use crate::world::ffi::Requests;
use crate::world::in_flight::InFlight;
use crate::world::meters::WireMeter;
use crate::world::{Op, World};
use serde_json::{json, Value};

impl World {
    /// Runs one call of the control plane where liveness sees it.
    pub(crate) fn control<T>(&self, run: impl FnOnce() -> Result<T>) -> Result<T> {
        let meter = WireMeter::control(&self.meters, self.rank());
        meter.blocked(None, || meter.collective(&self.stop, run))
    }

    /// Returns when every rank has called it.
    pub fn barrier(&self) -> Result<()> {
        self.control(|| {
            let mut req = Requests::default();
            req.barrier(&self.comm)?;
            req.wait(&self.stop, "barrier")
        })
    }

    /// On `root` every rank's bytes in rank order; `None` elsewhere.
    pub fn gather_bytes(&self, mine: &[u8], root: usize) -> Result<Option<Vec<Vec<u8>>>> {
        self.control(|| {
            let lens = self.comm.all_gather(&[mine.len() as u64], &self.stop)?;
            if self.rank() != root {
                let sent = InFlight::start(mine.to_vec(), |mine, req| {
                    // SAFETY: the copy is in flight until the wait has ended, or for ever.
                    unsafe { req.send(&self.comm, mine.as_ptr(), mine.len(), root, TAG) }
                });
                return sent?.wait(&self.stop, "gather").map(|_| None);
            }
            let mut all: Vec<Vec<u8>> = lens.iter().map(|&n| vec![0; n as usize]).collect();
            all[root].copy_from_slice(mine);
            let coming = InFlight::start(all, |all, req| {
                all.iter_mut().enumerate().filter(|(r, _)| *r != root).try_for_each(|(r, buf)| {
                    // SAFETY: each buffer is one message's own, and in flight until the wait has ended, or for ever.
                    unsafe { req.recv(&self.comm, buf.as_mut_ptr(), buf.len(), r, TAG) }
                })
            });
            coming?.wait(&self.stop, "gather").map(Some)
        })
    }

    /// Every rank ends with `root`'s bytes; what the others pass is ignored.
    pub fn broadcast_bytes(&self, bytes: Vec<u8>, root: usize) -> Result<Vec<u8>> {
        self.control(|| {
            let lens = self.comm.all_gather(&[bytes.len() as u64], &self.stop)?;
            let buf = if self.rank() == root { bytes } else { vec![0; lens[root] as usize] };
            let under_way = InFlight::start(buf, |buf, req| {
                // SAFETY: the buffer is in flight until the wait has ended, or for ever.
                unsafe { req.broadcast(&self.comm, buf.as_mut_ptr(), buf.len(), root) }
            });
            under_way?.wait(&self.stop, "broadcast")
        })
    }

    /// Every rank's bytes, in rank order, on every rank.
    pub fn all_gather_bytes(&self, mine: &[u8]) -> Result<Vec<Vec<u8>>> {
        self.control(|| {
            let lens = self.comm.all_gather(&[mine.len() as u64], &self.stop)?;
            let mut all: Vec<Vec<u8>> = lens.iter().map(|&n| vec![0; n as usize]).collect();
            all[self.rank()].copy_from_slice(mine);
            let under_way = InFlight::start(all, |all, req| {
                all.iter_mut().enumerate().try_for_each(|(r, buf)| {
                    // SAFETY: the buffers are in flight until the wait has ended, or for ever.
                    unsafe { req.broadcast(&self.comm, buf.as_mut_ptr(), buf.len(), r) }
                })
            });
            under_way?.wait(&self.stop, "all-gather")
        })
    }

    /// Element by element over all ranks, combined in rank order: the same bits on every rank and in every run.
    pub fn all_reduce_f64(&self, mine: &[f64], op: Op) -> Result<Vec<f64>> {
        let all = self.control(|| self.comm.all_gather(mine, &self.stop))?;
        let mut out = mine.to_vec();
        for (i, out) in out.iter_mut().enumerate() {
            let column = all.iter().skip(i).step_by(mine.len()).copied();
            *out = match op {
                Op::Sum => column.fold(-0.0, |a, b| a + b),
                Op::Max => column.fold(f64::NEG_INFINITY, |a, b| if a >= b || a.is_nan() { a } else { b }),
            };
        }
        Ok(out)
    }

    /// The ranks go on together or not at all: if `mine` is an error on any rank, every rank gets an error that names
    /// the ranks and repeats the lowest one's. Call it wherever one rank alone may fail (files, devices).
    pub fn agree<T>(&self, mine: Result<T>) -> Result<T> {
        if self.size() == 1 {
            return mine;
        }
        let packed = match &mine {
            Ok(_) => Vec::new(),
            Err(e) => {
                json!({ "exit": e.exit.code(), "fact": e.fact, "hint": e.hint, "problems": e.problems, "host": self.host() })
                    .to_string()
                    .into()
            }
        };
        let all = self.all_gather_bytes(&packed)?;
        let failed: Vec<(usize, &Vec<u8>)> = all.iter().enumerate().filter(|(_, b)| !b.is_empty()).collect();
        let Some(&(first, packed)) = failed.first() else { return mine };
        let v: Value = serde_json::from_slice(packed).unwrap_or(Value::Null);
        let exit = Exit::TABLE.iter().map(|row| row.0).find(|e| Some(e.code() as i64) == v["exit"].as_i64());
        let mut e = Error::new(exit.unwrap_or(Exit::Internal), v["fact"].as_str().unwrap_or("unknown error"));
        e.hint = v["hint"].as_str().map(str::to_string);
        e.problems =
            v["problems"].as_array().into_iter().flatten().filter_map(|p| p.as_str().map(str::to_string)).collect();
        e.agreed = true;
        if failed.len() == 1 {
            (e.rank, e.host) = (Some(first), v["host"].as_str().map(str::to_string));
        }
        Err(e.context(match failed.len() {
            n if n == self.size() => format!("all {n} ranks"),
            1 => format!("rank {first} ({})", v["host"].as_str().unwrap_or("unknown host")),
            n => format!("rank {first} and {} more of {}", n - 1, self.size()),
        }))
    }
}

const TAG: i32 = 1;
