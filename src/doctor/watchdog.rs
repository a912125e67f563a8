//! A peer that does not answer must not hold the doctor: after a time limit this rank says for whom it waited, and all waits end.

use crate::threads::lock;
use crate::world::World;
use serde::{Deserialize, Serialize};
use std::io::Write;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// What a rank waited for when the time was up.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StalledWait {
    /// Name of the rank's node.
    pub node: String,
    /// Part of the examination.
    pub part: String,
    /// The node that did not answer; none where all were waited for.
    pub peer: Option<String>,
}

/// The key of a line that a rank of `herd doctor` prints when its time is up.
pub const WAITING: &str = "herd_doctor_waiting";
/// Between the lines of all ranks and the end of the first.
const ALL_SPEAK: Duration = Duration::from_millis(1500);

/// Watches over one rank while it lives.
pub struct Watchdog {
    at: Arc<Mutex<StalledWait>>,
    over: Arc<AtomicBool>,
}

impl Watchdog {
    /// Ends the waits of `world` after `limit`.
    pub fn start(world: &World, limit: Duration) -> Watchdog {
        let at = Arc::new(Mutex::new(StalledWait { node: world.host().into(), part: "start".into(), peer: None }));
        let over = Arc::new(AtomicBool::new(false));
        let (here, done, stop) = (at.clone(), over.clone(), world.stop_flag());
        let watch = move || {
            let end = Instant::now() + limit;
            while Instant::now() < end {
                if done.load(Relaxed) {
                    return;
                }
                std::thread::sleep(Duration::from_millis(20));
            }
            let line = serde_json::json!({ WAITING: *lock(&here) });
            let _ = writeln!(std::io::stderr(), "{line}");
            std::thread::sleep(ALL_SPEAK);
            stop.store(true, Relaxed);
        };
        if let Err(e) = std::thread::Builder::new().name("herd-watchdog".into()).spawn(watch) {
            tracing::warn!("nothing ends this examination where a peer does not answer: no thread ({e})");
        }
        Watchdog { at, over }
    }

    /// What this rank does from now on, and with whom.
    pub fn now(&self, part: &str, peer: Option<&str>) {
        let mut at = lock(&self.at);
        (at.part, at.peer) = (part.to_string(), peer.map(str::to_string));
    }
}

impl Drop for Watchdog {
    fn drop(&mut self) {
        self.over.store(true, Relaxed);
    }
}
