//! Snapshots of a node, handed out to ranks of other nodes.

use crate::error::{Error, Exit, Result};
use crate::threads;
use crate::tiers::snapshot::inventory::Inventory;
use crate::world::{Request, World};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::thread::JoinHandle;

/// A thread on every node that hands out bytes of its snapshots.
pub struct Server {
    /// A duplicate of the ranks' world, in which snapshots are asked for and handed out.
    pub world: Arc<World>,
    thread: Option<JoinHandle<Result<()>>>,
}

impl Server {
    /// Collective.
    pub fn start(inventory: &Inventory, world: &World) -> Result<Server> {
        let own = Arc::new(world.duplicate()?);
        if inventory.nodes.leader[world.rank()] != world.rank() {
            return Ok(Server { world: own, thread: None });
        }
        let (files, served) = (inventory.files.clone(), own.clone());
        let mut read = move |r: Request, out: &mut [u8]| {
            let path = files.get(r.item as usize).ok_or(std::io::ErrorKind::NotFound)?;
            File::open(path)?.read_exact_at(out, r.at)
        };
        let serve = move || served.serve_reads(&mut read);
        let thread = threads::start("herd-serve", "a thread that serves snapshots", serve)?;
        Ok(Server { world: own, thread: Some(thread) })
    }

    /// Collective: nobody asks any more.
    pub fn end(self, world: &World) -> Result<()> {
        world.barrier()?;
        if let Some(thread) = self.thread {
            self.world.end_serving()?;
            thread.join().unwrap_or_else(|_| Err(Error::new(Exit::Internal, "the serving thread panicked")))?;
        }
        Ok(())
    }
}
