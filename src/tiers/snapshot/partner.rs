//! The second copy: each rank sends its snapshot to a rank of another node, behind the steps that follow.
//!
//! A thread of its own on a `World` of its own, so that the step's collectives never wait for it. The receiver checks every
//! block as it arrives and writes the header last, as the sender did.

use crate::config::Partner as Rule;
use crate::error::{Error, Exit, Result};
use crate::kernels::sum::{self, Sum};
use crate::threads;
use crate::tiers::snapshot::near::LocalPartner;
use crate::tiers::snapshot::nodes::Nodes;
use crate::tiers::snapshot::place::SnapshotDir;
use crate::tiers::snapshot::slot::{take, Header, Slot, PAGE};
use crate::tiers::snapshot::table::{Table, BLOCK};
use crate::world::{leak, or_leak, Incoming, World};
use memmap2::MmapMut;
use std::fs::File;
use std::mem::size_of;
use std::ops::Range;
use std::sync::atomic::{fence, Ordering};
use std::sync::mpsc::{channel, Receiver, Sender};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How long a step may be held up for a copy that is under way: nothing beside a step of seconds, and enough for a small
/// model's snapshots not to be skipped when steps take milliseconds.
const PATIENCE: Duration = Duration::from_millis(20);

/// The copies that this rank sends and receives.
pub struct PartnerCopies {
    jobs: Sender<Arc<Slot>>,
    done: Receiver<Result<Duration>>,
    under_way: bool,
}

/// Both slots for the copy of one rank.
pub struct PartnerSlots {
    /// World rank whose snapshots are copied here.
    pub from: usize,
    /// Where that rank is of this node.
    near: Option<LocalPartner>,
    slots: [(File, MmapMut); 2],
    /// The slot that is written next.
    next: usize,
}

impl PartnerSlots {
    /// Bytes of both slots.
    pub fn size(image: u64) -> u64 {
        2 * image
    }

    /// Slots for rank `from`, whose snapshots have `size` bytes. What `stays` names is written last. `near`: how many slots
    /// that rank has opened on this node, if it is of this node.
    pub fn open(
        place: &SnapshotDir, from: usize, size: usize, near: Option<usize>, stays: &dyn Fn(&Header) -> bool,
    ) -> Result<PartnerSlots> {
        let open = |i| take(&place.partner_of(from, i), size);
        let slots = [open(0)?, open(1)?];
        let next = Header::parse(&slots[0].1, size as u64).is_some_and(|h| stays(&h)) as usize;
        let near = near.map(|count| LocalPartner::open(place, from, count)).transpose()?;
        Ok(PartnerSlots { from, near, slots, next })
    }
}

/// Who sends to whom, and how much. Collective.
pub struct Pairs {
    /// The rank that keeps this one's copies.
    pub to: To,
    /// Ranks that send to this one, with the bytes of their snapshots.
    pub from: Vec<(usize, usize)>,
}

/// The keeper of this rank's copies.
#[derive(Clone, Copy)]
pub struct To {
    rank: usize,
    /// Of the same node: it takes what it finds in the slot.
    near: bool,
}

impl Pairs {
    /// `None`, on every rank, where nobody has a partner.
    pub fn find(rule: Rule, nodes: &Nodes, size: usize, world: &World) -> Result<Option<Pairs>> {
        let Some(to) = nodes.partners(rule) else { return Ok(None) };
        let all = world.all_gather_bytes(&(size as u64).to_le_bytes())?;
        let size_of = |r: usize| u64::from_le_bytes(all[r][..].try_into().unwrap_or_default()) as usize;
        let from = (0..to.len()).filter(|&r| to[r] == world.rank()).map(|r| (r, size_of(r))).collect();
        let rank = to[world.rank()];
        let near = nodes.leader[rank] == nodes.leader[world.rank()];
        Ok(Some(Pairs { to: To { rank, near }, from }))
    }
}

impl PartnerCopies {
    /// `world` is the thread's own.
    pub fn start(world: World, to: To, mut kept: Vec<PartnerSlots>) -> Result<PartnerCopies> {
        let (jobs, queue) = channel::<Arc<Slot>>();
        let (report, done) = channel();
        threads::start("herd-partner", "a thread for partner copies", move || {
            for slot in queue {
                let began = Instant::now();
                let result = copy(&world, to, &slot, &mut kept);
                if result.as_ref().is_err_and(|e| e.exit == Exit::Peer) {
                    leak((slot, kept));
                    let _ = report.send(result.map(|()| began.elapsed()));
                    return;
                }
                drop(slot);
                let _ = report.send(result.map(|()| began.elapsed()));
            }
        })?;
        Ok(PartnerCopies { jobs, done, under_way: false })
    }

    /// Starts the copy of a snapshot. All ranks do, none while a copy is under way anywhere.
    pub fn send(&mut self, slot: Arc<Slot>) {
        self.under_way = true;
        // A thread that is gone has reported why.
        let _ = self.jobs.send(slot);
    }

    /// Whether a copy is under way on this rank, and what came of one that has ended since the last call. Waits a moment
    /// for one that is nearly there.
    pub fn poll(&mut self) -> (bool, Option<Result<Duration>>) {
        let ended = self.under_way.then(|| self.done.recv_timeout(PATIENCE).ok()).flatten();
        self.under_way &= ended.is_none();
        (self.under_way, ended)
    }

    /// Waits for a copy under way.
    pub fn wait(&mut self) -> Option<Result<Duration>> {
        std::mem::take(&mut self.under_way).then(|| self.done.recv().ok()).flatten()
    }
}

/// Sends this rank's snapshot and receives those it keeps. After [`Exit::Peer`] the caller leaks both.
fn copy(world: &World, to: To, slot: &Slot, kept: &mut [PartnerSlots]) -> Result<()> {
    let own = slot.bytes();
    // The header goes ahead, so that blocks can be checked as they come; it is written last.
    let headers = or_leak(vec![[0u8; size_of::<Header>()]; kept.len()], |headers| {
        let mut heads: Vec<Incoming> =
            kept.iter().zip(headers).map(|(k, h)| Incoming { from: k.from, into: &mut h[..] }).collect();
        // SAFETY: after an error the headers are leaked here, and the slot by the caller.
        unsafe { world.exchange(Some((&own[..size_of::<Header>()], to.rank)), &mut heads, &mut |_, _, _| ()) }
    })?;
    let mut checks = Vec::new();
    let mut bodies: Vec<Incoming> = Vec::new();
    for (k, header) in kept.iter_mut().zip(&headers) {
        let map = &mut k.slots[k.next].1;
        map[..8].fill(0);
        fence(Ordering::SeqCst);
        if k.near.is_none() {
            checks.push(Check::new(Header::parse(header, u64::MAX)));
            bodies.push(Incoming { from: k.from, into: &mut map[PAGE..] });
        }
    }
    let far = (!to.near).then_some((&own[PAGE..], to.rank));
    // SAFETY: after an error the caller leaks the slot and what is kept.
    unsafe { world.exchange(far, &mut bodies, &mut |i, range, bytes| checks[i].arrived(range, bytes))? };
    drop(bodies);
    let mut checks = checks.into_iter();
    let mut wrong = None;
    for (k, header) in kept.iter_mut().zip(&headers) {
        let map = &mut k.slots[k.next].1;
        let verdict = match &k.near {
            Some(near) => {
                let verdict = near.copy(header, map);
                // From now on the slot may be written again.
                // SAFETY: a constant.
                unsafe { world.exchange(Some((&[1], k.from)), &mut [], &mut |_, _, _| ())? };
                verdict
            }
            None => checks.next().and_then(|check| check.verdict(map.len())),
        };
        match verdict {
            None => {
                map[8..header.len()].copy_from_slice(&header[8..]);
                fence(Ordering::SeqCst);
                map[..8].copy_from_slice(&header[..8]);
                k.next = 1 - k.next;
            }
            Some(why) => wrong = Some((k.from, why)),
        }
    }
    if to.near {
        taken(world, to.rank)?;
    }
    match wrong {
        None => Ok(()),
        Some((from, why)) => {
            Err(Error::new(Exit::Internal, format!("the snapshot of rank {from} arrived damaged: {why}"))
                .hint("suspect the network or the memory of those two nodes"))
        }
    }
}

/// Waits until the keeper on this node has copied the slot.
fn taken(world: &World, keeper: usize) -> Result<()> {
    let word = or_leak(vec![0u8], |word| {
        // SAFETY: after an error the word is leaked.
        unsafe { world.exchange(None, &mut [Incoming { from: keeper, into: word }], &mut |_, _, _| ()) }
    });
    word.map(drop)
}

/// Sums the data of one incoming snapshot, block by block, while it is in cache.
#[derive(Default)]
struct Check {
    header: Option<Header>,
    /// Meta, table and sums: what lies between the header page and the data.
    head: Vec<u8>,
    table: Option<Table>,
    /// Slice and block that are being summed.
    cursor: Cursor,
    sum: Option<Sum>,
    wrong: Option<String>,
}

/// Where in the table the next byte of data belongs.
#[derive(Default)]
struct Cursor {
    blocks: std::collections::VecDeque<(usize, Range<usize>)>,
    slice: usize,
}

impl Check {
    fn new(header: Option<Header>) -> Check {
        Check { header, ..Check::default() }
    }

    fn arrived(&mut self, range: Range<usize>, bytes: &[u8]) {
        let Some(header) = self.header else { return };
        let data_at = header.data.at as usize - PAGE;
        let mut rest = bytes;
        let mut at = range.start;
        if at < data_at {
            let n = rest.len().min(data_at - at);
            self.head.extend_from_slice(&rest[..n]);
            (rest, at) = (&rest[n..], at + n);
        }
        if !rest.is_empty() {
            self.data(&header, at - data_at, rest);
        }
    }

    /// Bytes of the data part from `at` on.
    fn data(&mut self, header: &Header, mut at: usize, mut bytes: &[u8]) {
        if self.table.is_none() {
            let part =
                |p: crate::tiers::snapshot::slot::SlotPart| self.head.get(p.range().start - PAGE..p.range().end - PAGE);
            let (Some(meta), Some(table), Some(sums)) = (part(header.meta), part(header.table), part(header.sums))
            else {
                self.wrong = Some("its parts are not where its header says".into());
                return;
            };
            if !header.fits(meta, table, sums) {
                self.wrong = Some("meta, table or sums have another checksum than its header says".into());
            }
            self.table = Table::parse(table.to_vec()).ok();
        }
        let Some(table) = &self.table else { return };
        while !bytes.is_empty() {
            if self.cursor.blocks.is_empty() {
                if self.cursor.slice == table.specs.len() {
                    return;
                }
                self.cursor.blocks.extend(table.blocks_of(self.cursor.slice));
                self.cursor.slice += 1;
                continue;
            }
            let (block, range) = self.cursor.blocks[0].clone();
            // Padding between slices belongs to no block.
            let skip = range.start.saturating_sub(at).min(bytes.len());
            (bytes, at) = (&bytes[skip..], at + skip);
            let n = bytes.len().min(range.end - at);
            let (now, later) = bytes.split_at(n);
            let whole = n == range.len();
            let sum = match whole {
                true => Some(sum::xxh3(now)),
                false => {
                    let sum = self.sum.get_or_insert_with(Default::default);
                    sum.update(now);
                    (at + n == range.end).then(|| sum.digest())
                }
            };
            (bytes, at) = (later, at + n);
            if let Some(sum) = sum {
                self.sum = None;
                self.cursor.blocks.pop_front();
                let stored = header.sums.at as usize - PAGE + 8 * block;
                if self.head.get(stored..stored + 8) != Some(&sum.to_ne_bytes()[..]) {
                    self.wrong.get_or_insert(format!("block {block} of {BLOCK} bytes has another checksum"));
                }
            }
        }
    }

    fn verdict(self, room: usize) -> Option<String> {
        let Some(header) = self.header else { return Some("its header is damaged".into()) };
        let all =
            self.table.as_ref().is_some_and(|t| self.cursor.slice == t.specs.len()) && self.cursor.blocks.is_empty();
        match self.wrong {
            Some(why) => Some(why),
            None if header.data.range().end > room => Some("it is longer than was agreed".into()),
            None if !all => Some("it is not complete".into()),
            None => None,
        }
    }
}
