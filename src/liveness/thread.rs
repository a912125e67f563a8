//! The liveness thread of a rank: carries [`Watch`]'s messages, looks at the clock, at local processes and at this rank's
//! progress, and leaves when a verdict is reached.

use super::exit::{self, Reaper};
use super::message::{Message, Probe};
use super::process::Processes;
use super::roster::RosterNode;
use super::view::WatchAction;
use super::watch::Watch;
use super::witness::Witness;
use super::{slow, Progress, Verdict};
use crate::config::LivenessSection;
use crate::error::{Exit, Result};
use crate::events::{Events, RunEvent};
use crate::world::{CollectiveCounters, Mailbox};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How long a verdict may take to reach the disk before the ranks are told to leave without it.
const WRITE: Duration = Duration::from_secs(2);
/// How long orders to leave are seen off.
const FAREWELL: Duration = Duration::from_millis(300);

pub(super) struct Thread {
    pub config: LivenessSection,
    pub run_dir: PathBuf,
    pub attempt: u64,
    pub rank: usize,
    pub watch: Watch,
    pub post: Mailbox,
    pub processes: Processes,
    pub progress: Arc<Progress>,
    pub meters: Arc<CollectiveCounters>,
    pub reaper: Arc<Reaper>,
    /// The world's: ends the main thread's waits.
    pub stop: Arc<AtomicBool>,
    pub closing: Arc<AtomicBool>,
    /// Whether this rank writes a verdict that its judge could not.
    pub deputy: bool,
    pub nodes: Arc<Vec<RosterNode>>,
    /// Of a node's leader.
    pub witness: Option<Witness>,
}

impl Thread {
    /// Until the run ends or a verdict is reached. Gives the letter box back at a good end.
    pub(super) fn run(mut self) -> Mailbox {
        let origin = Instant::now();
        let interval = Duration::from_secs_f64(self.config.interval_s);
        let poll = (interval / 5).min(Duration::from_millis(50));
        let nap = (interval / 2).max(Duration::from_millis(250));
        let mut last = Duration::ZERO;
        self.invite();
        while !self.closing.load(SeqCst) {
            let mut now = origin.elapsed();
            if now - last > nap {
                self.slept();
                now = origin.elapsed();
                self.watch.fresh(now);
            }
            last = now;
            self.reaper.beat();
            for action in self.round(now) {
                if self.act(action) {
                    return self.post;
                }
            }
            std::thread::park_timeout(poll);
        }
        self.reaper.rest();
        self.see_off(Duration::ZERO);
        self.post
    }

    /// Asks the leader of the next node for a connection.
    fn invite(&mut self) {
        if let Some((witness, next, invitation)) = Witness::start(&self.nodes, self.rank) {
            let _ = self.post.send(next, Message::Witness(invitation).encode(self.attempt));
            self.witness = Some(witness);
        }
    }

    fn round(&mut self, now: Duration) -> Vec<WatchAction> {
        self.watch.learn(|known| self.meters.tables(known));
        let mut actions = Vec::new();
        // A letter box that fails is like a silent network: the watch will say so.
        while let Ok(Some((from, bytes))) = self.post.receive() {
            let Some(message) = Message::decode(self.attempt, &bytes) else { continue };
            if let Message::Witness(invitation) = message {
                let host = self.nodes.iter().find(|n| n.ranks[0] == from).map(|n| &n.name);
                self.witness.iter().zip(host).for_each(|(witness, host)| witness.accept(host, invitation));
                continue;
            }
            self.processes.learn(from, &message);
            actions.extend(self.watch.hear(now, from, message));
        }
        for rank in self.processes.ended() {
            self.witness.iter().for_each(|witness| witness.ended(rank));
            actions.extend(self.watch.died(now, rank));
        }
        let probe = self.probe();
        actions.extend(self.watch.tick(now, probe));
        actions
    }

    fn probe(&self) -> Probe {
        let status = self.progress.status(&self.config);
        let meters = self.meters.read();
        let millis = super::watch::millis;
        Probe {
            step: status.step,
            progress: status.count,
            pid_space: self.processes.space(),
            pid: std::process::id(),
            rank: self.rank as u32,
            phase: status.phase as u32,
            age_ms: 0,
            stuck_ms: millis(status.stuck),
            limit_ms: millis(status.limit),
            own_us: status.own.as_micros().min(u32::MAX as u128) as u32,
            step_us: status.last_step.as_micros().min(u32::MAX as u128) as u32,
            blocked_wire: meters.blocked_wire,
            blocked_peer: meters.blocked_peer,
            entered: meters.entered,
            left: meters.left,
        }
    }

    /// Whether the process is about to leave.
    fn act(&mut self, action: WatchAction) -> bool {
        match action {
            WatchAction::Send { to, message } => {
                let _ = self.post.send(to, message.encode(self.attempt));
                false
            }
            WatchAction::Slow(found) => {
                self.report(found);
                false
            }
            WatchAction::Verdict(mut verdict) => {
                verdict.time = jiff::Timestamp::now();
                verdict.evidence.step_s = self.progress.recent().iter().map(Duration::as_secs_f64).collect();
                let limit = WRITE.min(Duration::from_secs_f64(self.config.grace_s / 2.0));
                let written = exit::within(limit, self.run_dir.clone(), (*verdict).clone(), true);
                let orders = self.watch.order(&verdict, written);
                self.leave(orders, &verdict);
                true
            }
            WatchAction::Leave { verdict, written } => {
                if !written && self.deputy {
                    let node = exit::MYSELF.get().map_or_else(String::new, |me| me.node.clone());
                    let mine = Verdict { accuser: self.rank, accuser_node: node, ..(*verdict).clone() };
                    exit::within(
                        WRITE.min(Duration::from_secs_f64(self.config.grace_s / 2.0)),
                        self.run_dir.clone(),
                        mine,
                        true,
                    );
                }
                let orders = self.watch.relay(&verdict, written);
                self.leave(orders, &verdict);
                true
            }
        }
    }

    /// Passes the word on, then ends the main thread's waits; the reaper ends the process if the main thread does not.
    fn leave(&mut self, orders: Vec<WatchAction>, verdict: &Verdict) {
        // One that was given up and hears of it is fenced off like one that slept.
        let code = match verdict.ranks.contains(&self.rank) {
            true => Exit::Fenced.code(),
            false => Exit::Peer.code(),
        };
        if let Some(me) = exit::MYSELF.get() {
            me.condemned.store(code, SeqCst);
        }
        self.reaper.leave_in(Duration::from_secs_f64(self.config.grace_s), code);
        self.reaper.rest();
        for order in orders {
            self.act(order);
        }
        self.see_off(Duration::from_millis(20));
        self.stop.store(true, SeqCst);
    }

    /// Until what was sent has left, and `more`: MPI may call a message sent that is still in its own queue.
    fn see_off(&mut self, more: Duration) {
        let began = Instant::now();
        let mut clear = None;
        while began.elapsed() < FAREWELL {
            let _ = self.post.receive();
            if clear.is_none() && self.post.clear() {
                clear = Some(Instant::now());
            }
            if clear.is_some_and(|t: Instant| t.elapsed() >= more) {
                return;
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// This process was stopped, or starved: before anything else, has it been given up meanwhile?
    fn slept(&self) {
        if exit::is_fenced(WRITE, &self.run_dir, self.rank) == Some(true) {
            exit::hard(Exit::Fenced.code());
        }
    }

    fn report(&self, found: slow::SlowRank) {
        let dir = self.run_dir.clone();
        let (own_s, median_s) = (found.own.as_secs_f64(), found.median.as_secs_f64());
        let event = RunEvent::SlowRank { rank: found.rank, own_s, median_s };
        let write = move || -> Result<()> { Events::open(&dir)?.write(&event) };
        // Written beside, since storage may block.
        let _ = std::thread::Builder::new().name("herd-event".into()).spawn(move || _ = write());
    }
}
