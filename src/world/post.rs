//! Small messages between any two ranks from a thread of their own, on a communicator of their own. No call here waits.

use crate::error::Result;
use crate::world::comm::Comm;
use crate::world::in_flight::InFlight;
use crate::world::traffic::Purpose;
use crate::world::World;
use std::collections::{HashMap, VecDeque};

const TAG: i32 = 5;
/// Messages under way to one rank; further ones are dropped: a rank that takes none is about to be given up.
const UNDER_WAY: usize = 64;

/// A rank's letter box.
pub struct Mailbox {
    comm: Comm,
    /// By receiver; of each the oldest first.
    out: HashMap<usize, VecDeque<InFlight<Vec<u8>>>>,
    coming: Vec<Letter>,
}

/// A message that is being received.
struct Letter {
    peer: usize,
    bytes: InFlight<Vec<u8>>,
}

/// Node of a rank.
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
struct Place {
    leader: u64,
    name: [u8; 64],
}

impl Mailbox {
    /// Collective over the world.
    pub fn open(world: &World) -> Result<Mailbox> {
        let comm = world.comm.duplicate()?.for_use(Purpose::Liveness);
        Ok(Mailbox { comm, out: HashMap::new(), coming: Vec::new() })
    }

    /// Starts a message.
    pub fn send(&mut self, to: usize, bytes: Vec<u8>) -> Result<()> {
        let queue = self.out.entry(to).or_default();
        see_off(queue);
        if queue.len() >= UNDER_WAY {
            return Ok(());
        }
        let bytes = InFlight::start(bytes, |bytes, req| {
            // SAFETY: the bytes are in flight until the message has ended, or for ever.
            unsafe { req.send(&self.comm, bytes.as_ptr(), bytes.len(), to, TAG) }
        })?;
        queue.push_back(bytes);
        Ok(())
    }

    /// A message that has come, and from whom.
    pub fn receive(&mut self) -> Result<Option<(usize, Vec<u8>)>> {
        while let Some((from, len)) = self.comm.waiting(TAG)? {
            let bytes = InFlight::start(vec![0; len], |bytes, req| {
                // SAFETY: as above.
                unsafe { req.recv(&self.comm, bytes.as_mut_ptr(), len, from, TAG) }
            })?;
            self.coming.push(Letter { peer: from, bytes });
        }
        let mut i = 0;
        while i < self.coming.len() {
            match self.coming[i].bytes.done() {
                Ok(true) => {
                    let Letter { peer, bytes } = self.coming.remove(i);
                    return Ok(bytes.take().map(|bytes| (peer, bytes)));
                }
                Ok(false) => i += 1,
                // its sender is gone; letters of others wait behind it
                Err(_) => _ = self.coming.remove(i),
            }
        }
        Ok(None)
    }

    /// Whether every message has left, or cannot any more: its receiver is gone.
    pub fn clear(&mut self) -> bool {
        self.out.retain(|_, queue| {
            see_off(queue);
            !queue.is_empty()
        });
        self.out.is_empty()
    }
}

/// Drops what has left, or cannot any more; messages to one rank leave in order.
fn see_off(queue: &mut VecDeque<InFlight<Vec<u8>>>) {
    while queue.front_mut().is_some_and(|letter| !matches!(letter.done(), Ok(false))) {
        queue.pop_front();
    }
}

impl World {
    /// Leader (lowest rank of the node) and node name of every rank, by whose memory MPI shares. Who shares a directory of snapshots
    /// is another question, which `tiers` asks. Collective.
    pub fn node_of_each(&self) -> Result<Vec<(usize, String)>> {
        let node = self.comm.split_node()?;
        let ranks = node.all_gather(&[self.rank() as u64], &self.stop)?;
        let mut place = Place { leader: ranks.into_iter().min().unwrap_or_default(), name: [0; 64] };
        for (to, from) in place.name.iter_mut().zip(self.host().bytes()) {
            *to = from;
        }
        let all = self.comm.all_gather(&[place], &self.stop)?;
        let text = |p: &Place| String::from_utf8_lossy(&p.name).trim_end_matches('\0').to_string();
        Ok(all.iter().map(|p| (p.leader as usize, text(p))).collect())
    }
}
