//! Collectives of the control plane by messages of our own, along the shapes of `tree`.
//!
//! MPI's would do, but Open MPI's nonblocking ones send to every rank (libnbc's all-gather is linear), and blocking ones cannot be
//! left. These can: every wait watches the stop flag. All ranks of the communicator call them in the same order, from one thread;
//! messages between two ranks keep their order (MPI 4.1 §3.5), so one tag is enough.

use super::comm::Comm;
use super::in_flight::InFlight;
use super::requests::Requests;
use super::tree::{binomial, levels, rounds, SumLevel, TreeNode};
use crate::error::Result;
use bytemuck::Pod;
use std::ops::Range;
use std::sync::atomic::AtomicBool;

const TAG: i32 = 1;

/// Where the ranks of a tree are: place `p` is rank `(first + p * stride) % size`.
#[derive(Clone, Copy)]
struct Places {
    first: usize,
    stride: usize,
    size: usize,
}

impl Places {
    fn rank(&self, place: usize) -> usize {
        (self.first + place * self.stride) % self.size
    }
}

impl Comm {
    /// Returns when every rank has called it.
    pub(crate) fn barrier(&self, stop: &AtomicBool) -> Result<()> {
        let (me, n) = (self.rank()?, self.size());
        for r in rounds(n) {
            let word = InFlight::start(Box::new([0u8; 2]), |word, req| {
                // SAFETY: a byte each, in flight until the wait has ended, or for ever.
                unsafe {
                    req.recv(self, &raw mut word[0], 1, (me + r.distance) % n, TAG)?;
                    req.send(self, &raw const word[1], 1, (me + n - r.distance) % n, TAG)
                }
            });
            word?.wait(stop, "barrier")?;
        }
        Ok(())
    }

    /// Every rank's `mine`, in rank order. `T` is plain data, of the same length everywhere.
    pub(crate) fn all_gather<T: Pod>(&self, mine: &[T], stop: &AtomicBool) -> Result<Vec<T>> {
        let starts: Vec<usize> = (0..=self.size()).map(|r| r * mine.len()).collect();
        self.disseminate(mine, &starts, stop)
    }

    /// Every rank's bytes, in rank order.
    pub(crate) fn all_gather_bytes(&self, mine: &[u8], stop: &AtomicBool) -> Result<Vec<Vec<u8>>> {
        let (me, n) = (self.rank()?, self.size());
        let lens = self.all_gather(&[mine.len() as u64], stop)?;
        let all = self.disseminate(mine, &starts((0..n).map(|i| lens[(me + i) % n])), stop)?;
        Ok(cut(&all, &starts(lens)))
    }

    /// `starts[i]..starts[i + 1]`: where the elements of the rank `i` after this one come to lie on the way.
    fn disseminate<T: Pod>(&self, mine: &[T], starts: &[usize], stop: &AtomicBool) -> Result<Vec<T>> {
        let (me, n, width) = (self.rank()?, self.size(), std::mem::size_of::<T>());
        let mut all = vec![T::zeroed(); starts[n]];
        all[..mine.len()].copy_from_slice(mine);
        for r in rounds(n) {
            let coming = starts[r.distance]..starts[r.distance + r.blocks];
            let going = starts[r.blocks];
            let under_way = InFlight::start(all, |all, req| {
                let base = all.as_mut_ptr();
                // SAFETY: two parts of the buffer that do not overlap, in flight until the wait has ended, or for ever.
                unsafe {
                    let into = base.add(coming.start).cast();
                    req.recv(self, into, coming.len() * width, (me + r.distance) % n, TAG)?;
                    req.send(self, base.cast(), going * width, (me + n - r.distance) % n, TAG)
                }
            });
            all = under_way?.wait(stop, "all-gather")?;
        }
        // from "this rank first" to "rank 0 first"
        all.rotate_left(starts[(n - me) % n]);
        Ok(all)
    }

    /// On `root` every rank's bytes in rank order; `None` elsewhere.
    pub(crate) fn gather_bytes(&self, mine: &[u8], root: usize, stop: &AtomicBool) -> Result<Option<Vec<Vec<u8>>>> {
        let (me, n) = (self.rank()?, self.size());
        let places = Places { first: root, stride: 1, size: n };
        let node = binomial((me + n - root) % n, n);
        let lens = self.collect(&node, places, &[mine.len() as u64], |place| place - node.run.start, stop)?;
        let starts = starts(lens);
        let all = self.collect(&node, places, mine, |place| starts[place - node.run.start], stop)?;
        Ok(node.parent.is_none().then(|| {
            let mut out = cut(&all, &starts);
            out.rotate_right(root);
            out
        }))
    }

    /// What the ranks of this node's run have, in the order of their places; it has also gone to the parent, if there is one.
    /// `start`: where the elements of a place begin, up to the run's end.
    fn collect<T: Pod>(
        &self, node: &TreeNode, places: Places, mine: &[T], start: impl Fn(usize) -> usize, stop: &AtomicBool,
    ) -> Result<Vec<T>> {
        let width = std::mem::size_of::<T>();
        let mut all = vec![T::zeroed(); start(node.run.end)];
        all[..mine.len()].copy_from_slice(mine);
        let coming = InFlight::start(all, |all, req| {
            let base = all.as_mut_ptr();
            node.children.iter().try_for_each(|run| {
                let part: Range<usize> = start(run.start)..start(run.end);
                // SAFETY: each child's part is its own, in flight until the wait has ended, or for ever.
                unsafe { req.recv(self, base.add(part.start).cast(), part.len() * width, places.rank(run.start), TAG) }
            })
        });
        let all = coming?.wait(stop, "gather")?;
        let Some(parent) = node.parent else { return Ok(all) };
        let going = InFlight::start(all, |all, req| {
            // SAFETY: as above.
            unsafe { req.send(self, all.as_ptr().cast(), all.len() * width, places.rank(parent), TAG) }
        });
        going?.wait(stop, "gather")
    }

    /// Every rank ends with `root`'s elements, of which each passes as many.
    fn spread<T: Pod>(&self, data: Vec<T>, root: usize, stop: &AtomicBool) -> Result<Vec<T>> {
        let (me, n) = (self.rank()?, self.size());
        let places = Places { first: root, stride: 1, size: n };
        let node = binomial((me + n - root) % n, n);
        let bytes = std::mem::size_of_val(&data[..]);
        let pass = |data, step: &dyn Fn(*mut u8, &mut Requests) -> Result<()>| {
            let under_way = InFlight::start(data, |data: &mut Vec<T>, req| step(data.as_mut_ptr().cast(), req));
            under_way?.wait(stop, "broadcast")
        };
        let data = match node.parent {
            // SAFETY: here and below: the elements are in flight until the wait has ended, or for ever.
            Some(parent) => pass(data, &|to, req| unsafe { req.recv(self, to, bytes, places.rank(parent), TAG) })?,
            None => data,
        };
        pass(data, &|from, req| {
            // the longest way first
            let mut children = node.children.iter().rev();
            children.try_for_each(|run| unsafe { req.send(self, from, bytes, places.rank(run.start), TAG) })
        })
    }

    /// Every rank ends with `root`'s bytes; what the others pass is ignored.
    pub(crate) fn broadcast_bytes(&self, bytes: Vec<u8>, root: usize, stop: &AtomicBool) -> Result<Vec<u8>> {
        let len = self.spread(vec![bytes.len() as u64], root, stop)?[0] as usize;
        let bytes = if self.rank()? == root { bytes } else { vec![0; len] };
        self.spread(bytes, root, stop)
    }

    /// Combines every rank's elements by `fold(so far, the next rank's)`, in rank order within blocks of [`super::tree::BLOCK`]
    /// ranks, then over blocks: the same bits on every rank and in every run.
    pub(crate) fn all_reduce<T: Pod>(
        &self, mine: &[T], fold: impl Fn(&mut [T], &[T]), stop: &AtomicBool,
    ) -> Result<Vec<T>> {
        let len = mine.len();
        let mut mine = mine.to_vec();
        for SumLevel { node, first, stride } in levels(self.rank()?, self.size()) {
            let places = Places { first, stride, size: self.size() };
            let all = self.collect(&node, places, &mine, |place| (place - node.run.start) * len, stop)?;
            if node.parent.is_none() && len > 0 {
                mine.copy_from_slice(&all[..len]);
                all[len..].chunks(len).for_each(|next| fold(&mut mine, next));
            }
        }
        self.spread(mine, 0, stop)
    }
}

/// Where parts of these lengths begin, one after the other, and where the last ends.
fn starts(lens: impl IntoIterator<Item = u64>) -> Vec<usize> {
    let mut out = vec![0];
    for len in lens {
        out.push(out[out.len() - 1] + len as usize);
    }
    out
}

fn cut(all: &[u8], starts: &[usize]) -> Vec<Vec<u8>> {
    starts.windows(2).map(|w| all[w[0]..w[1]].to_vec()).collect()
}
