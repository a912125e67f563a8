//! Messages between two ranks that both expect them, for measuring the link between them. Every wait watches the stop flag.
//! Errors: [`crate::error::Exit::Peer`].

use super::in_flight::InFlight;
use super::World;
use crate::error::Result;

const TAG: i32 = 9;

impl World {
    /// Sends `bytes` to `peer`, which receives as many, and gives them back when MPI has taken them.
    pub fn send_to(&self, peer: usize, bytes: Vec<u8>) -> Result<Vec<u8>> {
        let under_way = InFlight::start(bytes, |bytes, req| {
            // SAFETY: the bytes are in flight until the wait has ended, or for ever.
            unsafe { req.send(&self.comm, bytes.as_ptr(), bytes.len(), peer, TAG) }
        });
        under_way?.wait(&self.stop, "a message to one rank")
    }

    /// Receives from `peer` as many bytes as `room` has, into it.
    pub fn receive_from(&self, peer: usize, room: Vec<u8>) -> Result<Vec<u8>> {
        let under_way = InFlight::start(room, |room, req| {
            // SAFETY: as above.
            unsafe { req.recv(&self.comm, room.as_mut_ptr(), room.len(), peer, TAG) }
        });
        under_way?.wait(&self.stop, "a message from one rank")
    }

    /// Both at once, each of its own length: what is sent, and what came into `room`.
    pub fn exchange_with(&self, peer: usize, bytes: Vec<u8>, room: Vec<u8>) -> Result<(Vec<u8>, Vec<u8>)> {
        let under_way = InFlight::start((bytes, room), |(bytes, room), req| {
            // SAFETY: as above; two buffers.
            unsafe {
                req.recv(&self.comm, room.as_mut_ptr(), room.len(), peer, TAG)?;
                req.send(&self.comm, bytes.as_ptr(), bytes.len(), peer, TAG)
            }
        });
        under_way?.wait(&self.stop, "messages with one rank")
    }
}
