//! The examination, on every rank; judged on rank 0. A node is spoken for by its lowest rank.

use super::check::{Check, Diagnosis, PartTime};
use super::facts::{ClockFacts, HostFacts, LinkFacts, PlaceFacts, SpeedFacts};
use super::judge::{self, Suspects};
use super::look::{self, Load};
use super::question::Inquiry;
use super::watchdog::Watchdog;
use super::{clock, links, shared};
use crate::error::{Error, Exit, Result};
use crate::slurm::process::{command, output};
use crate::slurm::Job;
use crate::world::World;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::result::Result as Outcome;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Products and copies of one measurement.
const COMPUTE: Duration = Duration::from_millis(500);
const COPY: Duration = Duration::from_millis(200);
/// What looks slow is measured so often in all.
const TIMES: usize = 4;
/// Up to so many hosts each looks up all others' names.
const ALL_NAMES: usize = 32;
/// After this the ranks that wait for a peer give it up.
const LIMIT: Duration = Duration::from_secs(90);

/// The hosts of the world, in the order of their lowest ranks.
struct Hosts {
    names: Vec<String>,
    /// The lowest rank of each.
    leaders: Vec<usize>,
    /// Ranks of each.
    ranks: Vec<usize>,
    /// This rank's.
    mine: usize,
    leads: bool,
}

impl Hosts {
    /// By name, so that nodes which share a kernel (and MPI takes for one) stay apart. Collective.
    fn of(world: &World) -> Result<Hosts> {
        let mut h = Hosts { names: vec![], leaders: vec![], ranks: vec![], mine: 0, leads: false };
        let mut known: BTreeMap<String, usize> = BTreeMap::new();
        for (rank, (_, name)) in world.node_of_each()?.into_iter().enumerate() {
            let i = *known.entry(name.clone()).or_insert(h.names.len());
            if i == h.names.len() {
                h.names.push(name);
                h.leaders.push(rank);
                h.ranks.push(0);
            }
            h.ranks[i] += 1;
            if rank == world.rank() {
                (h.mine, h.leads) = (i, h.leaders[i] == rank);
            }
        }
        Ok(h)
    }

    fn count(&self) -> usize {
        self.names.len()
    }

    /// Names that this host looks up: all others', or those at distances 1, 2, 4, … .
    fn peers(&self) -> Vec<String> {
        let n = self.count();
        match n <= ALL_NAMES {
            true => {
                self.names.iter().enumerate().filter(|(i, _)| *i != self.mine).map(|(_, name)| name.clone()).collect()
            }
            false => shared::others(self.mine, n).map(|i| self.names[i].clone()).collect(),
        }
    }
}

/// What a rank sends to rank 0 after a part.
#[derive(Default, Serialize, Deserialize)]
struct Part {
    host: usize,
    facts: Option<HostFacts>,
    speed: Option<SpeedFacts>,
    clock: Option<ClockFacts>,
    links: Vec<LinkFacts>,
    /// Places after files were written and read there.
    places: Vec<PlaceFacts>,
}

/// One examination under way.
struct Examination<'a> {
    world: &'a World,
    q: Inquiry,
    hosts: Hosts,
    dog: Watchdog,
    /// On rank 0.
    facts: Vec<HostFacts>,
    parts: Vec<PartTime>,
    bytes: usize,
}

/// All ranks of `world` are examined together; the diagnosis is rank 0's. `question`: rank 0 asks it. `started`: how long this
/// process took to load, and MPI to start, in seconds.
///
/// # Errors
/// Those of `question`, on all ranks; [`Exit::Peer`] where a rank does not answer.
pub fn examine(
    world: &World, question: impl FnOnce() -> Result<Inquiry>, started: (f64, f64),
) -> Result<Option<Diagnosis>> {
    let began = Instant::now();
    let dog = Watchdog::start(world, LIMIT);
    let q = world.from_first(question)?;
    let hosts = Hosts::of(world)?;
    let mut e = Examination { world, q, hosts, dog, facts: Vec::new(), parts: Vec::new(), bytes: 0 };
    e.look(started)?;
    if e.q.full {
        e.timed("clock", clock::rounds(e.hosts.count()), Examination::clocks)?;
        e.timed("storage", 0, Examination::storage)?;
        let load = Load::new(e.threads());
        e.timed("speed", 0, |e| e.speed(&load))?;
        let rounds = links::rounds(e.hosts.count());
        e.timed("links", rounds, |e| e.links(&[]))?;
        e.timed("again", 0, |e| e.again(&load))?;
    }
    if world.rank() != 0 {
        return Ok(None);
    }
    let mut checks = judge::all(&e.q, &e.facts);
    checks.extend(planned(&e.q));
    checks.extend(slurm());
    let mut d = Diagnosis::new(e.hosts.names.clone(), world.size(), checks);
    (d.parts, d.bytes, d.seconds) = (e.parts, e.bytes, began.elapsed().as_secs_f64());
    Ok(Some(d))
}

/// What a host finds without the others, a write to the shared directories included.
pub fn alone(q: &Inquiry, node: &str, load_s: f64) -> HostFacts {
    let mut facts = look::look(q, node, &[]);
    (facts.ranks, facts.load_s) = (1, load_s);
    let nonce = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos() as u64;
    let of_place = |path: &PathBuf| {
        let place = shared::look(path);
        let written = shared::Token::write(Path::new(&place.there), nonce, std::process::id() as usize).1;
        PlaceFacts { written: Some(written), ..place }
    };
    facts.places = q.places.iter().map(of_place).collect();
    facts
}

/// Whether the configuration fits these ranks.
pub fn planned(q: &Inquiry) -> Option<Check> {
    q.config.as_ref()?;
    Some(match &q.unplanned {
        Some(why) => Check::red(
            "plan",
            why.clone(),
            "herd config check says the same; change the configuration or the number of nodes",
        ),
        None => Check::green("plan", format!("the configuration fits {} ranks", q.run_ranks)),
    })
}

/// Slurm's settings, where this is in a job.
pub fn slurm() -> Vec<Check> {
    const TIME: Duration = Duration::from_secs(5);
    let Some(job) = Job::current().job else { return vec![Check::skipped("slurm", "not in a Slurm job")] };
    let ask = |args: &[&str]| output(command("scontrol", args), TIME);
    match ask(&["show", "config"]) {
        Ok(config) => judge::slurm::judge(&config, ask(&["show", "job", "-o", &job.address()]).ok().as_deref()),
        Err(e) => vec![Check::skipped("slurm", e.to_string())],
    }
}

impl Examination<'_> {
    fn timed(&mut self, name: &str, rounds: usize, run: impl FnOnce(&mut Self) -> Result<()>) -> Result<()> {
        self.dog.now(name, None);
        let began = Instant::now();
        run(self)?;
        self.dog.now(name, None);
        self.parts.push(PartTime { name: name.into(), seconds: began.elapsed().as_secs_f64(), rounds });
        Ok(())
    }

    /// Every rank's part to rank 0, which takes it in by `take`.
    fn gather(&mut self, part: Part, take: impl Fn(&mut HostFacts, Part)) -> Result<()> {
        let part = Part { host: self.hosts.mine, ..part };
        let bytes = serde_json::to_vec(&part).map_err(|e| Error::new(Exit::Internal, format!("facts: {e}")))?;
        let Some(all) = self.world.gather_bytes(&bytes, 0)? else { return Ok(()) };
        self.facts.resize_with(self.hosts.count(), HostFacts::default);
        for bytes in all {
            self.bytes += bytes.len();
            let part: Part = parsed(&bytes)?;
            let host = part.host;
            take(&mut self.facts[host], part);
        }
        Ok(())
    }

    /// What each host finds by itself.
    fn look(&mut self, (load_s, mpi_s): (f64, f64)) -> Result<()> {
        let hosts = &self.hosts;
        let find = || {
            let mut facts = look::look(&self.q, &hosts.names[hosts.mine], &hosts.peers());
            (facts.ranks, facts.load_s, facts.mpi_s) = (hosts.ranks[hosts.mine], load_s, mpi_s);
            facts.places = self.q.places.iter().map(|p| shared::look(p)).collect();
            facts
        };
        let began = Instant::now();
        let part = Part { facts: hosts.leads.then(find), ..Part::default() };
        self.gather(part, |host, part| {
            if let Some(facts) = part.facts {
                *host = facts;
            }
        })?;
        self.parts.push(PartTime { name: "look".into(), seconds: began.elapsed().as_secs_f64(), rounds: 0 });
        Ok(())
    }

    fn clocks(&mut self) -> Result<()> {
        let (h, mut part) = (&self.hosts, Part::default());
        if h.leads {
            part.clock = clock::measure(self.world, &h.leaders, &h.names, h.mine, &self.dog)?;
        }
        self.gather(part, |host, part| host.clock = part.clock.or(host.clock))
    }

    /// Each host writes a file where most hosts have the directory, and reads those of others.
    fn storage(&mut self) -> Result<()> {
        let (facts, q) = (&self.facts, &self.q);
        let bases = || -> Result<(u64, Vec<PathBuf>)> {
            let nonce = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos() as u64;
            let most = |i: usize| {
                let mut count: BTreeMap<&str, usize> = BTreeMap::new();
                facts.iter().filter_map(|h| h.places.get(i)).for_each(|p| *count.entry(&p.there).or_default() += 1);
                // of two as frequent, the deeper one
                count
                    .into_iter()
                    .max_by_key(|(path, n)| (*n, path.len()))
                    .map_or_else(PathBuf::new, |(path, _)| path.into())
            };
            Ok((nonce, (0..q.places.len()).map(most).collect()))
        };
        let (nonce, bases) = self.world.from_first(bases)?;
        let (me, n, leads) = (self.hosts.mine, self.hosts.count(), self.hosts.leads);
        let write = |base: &PathBuf| shared::Token::write(base, nonce, me);
        let (tokens, written): (Vec<_>, Vec<_>) = bases.iter().filter(|_| leads).map(write).unzip();
        self.world.barrier()?;
        let read = |base: &Path| {
            let others = shared::others(me, n).chain((n == 1).then_some(0));
            others.map(|other| (other, shared::read(base, nonce, other))).collect::<BTreeMap<_, _>>()
        };
        let places = bases.iter().zip(written).map(|(base, written)| PlaceFacts {
            seen: read(base),
            written: Some(written),
            quota_free: (me == 0).then(|| quota(base)).flatten(),
            ..PlaceFacts::default()
        });
        let part = Part { places: places.collect(), ..Part::default() };
        self.world.barrier()?;
        drop(tokens);
        self.gather(part, |host, part| {
            for (old, new) in host.places.iter_mut().zip(part.places) {
                merge(old, new);
            }
        })
    }

    /// CPU threads of this rank, as herd train would have them.
    fn threads(&self) -> usize {
        let bound = std::thread::available_parallelism().map_or(1, |n| n.get());
        // SAFETY: a query without arguments to keep alive.
        let online = unsafe { libc::sysconf(libc::_SC_NPROCESSORS_ONLN) }.max(1) as usize;
        match (self.q.threads, bound < online) {
            (0, true) => bound,
            (0, false) => (online / self.hosts.ranks[self.hosts.mine]).max(1),
            (n, _) => n,
        }
    }

    /// All ranks at the same time; a host's speed is the sum of its ranks'.
    fn speed(&mut self, load: &Load) -> Result<()> {
        self.world.barrier()?;
        let part = Part { speed: Some(load.measure(COMPUTE, COPY)), ..Part::default() };
        let time = self.facts.first().map_or(0, |h| h.speeds.len());
        self.gather(part, |host, part| {
            host.speeds.resize(time + 1, SpeedFacts::default());
            let (sum, s) = (&mut host.speeds[time], part.speed.unwrap_or_default());
            (sum.flops, sum.memory, sum.wrong) = (sum.flops + s.flops, sum.memory + s.memory, sum.wrong + s.wrong);
        })
    }

    /// The rounds of all hosts, or these links alone.
    fn links(&mut self, only: &[(usize, usize)]) -> Result<()> {
        let (h, mut part) = (&self.hosts, Part::default());
        self.world.barrier()?;
        if h.leads {
            let n = h.count();
            let all = (0..links::rounds(n)).filter_map(|round| links::partner(h.mine, round, n));
            let ends = only.iter().filter_map(|&(a, b)| match h.mine {
                me if me == a => Some(b),
                me if me == b => Some(a),
                _ => None,
            });
            let partners: Vec<usize> = if only.is_empty() { all.collect() } else { ends.collect() };
            part.links = links::measure(self.world, &h.leaders, &h.names, h.mine, partners.into_iter(), &self.dog)?;
        }
        self.gather(part, |host, part| host.links.extend(part.links))
    }

    /// What looks slow is measured once more, links without the others; what then still does is told.
    fn again(&mut self, load: &Load) -> Result<()> {
        for _ in 1..TIMES {
            let facts = &self.facts;
            let s: Suspects = self.world.from_first(|| Ok(judge::suspects(facts)))?;
            if s.none() {
                break;
            }
            if s.speed {
                self.speed(load)?;
            }
            if s.storage {
                self.storage()?;
            }
            if !s.links.is_empty() {
                self.links(&s.links)?;
            }
        }
        Ok(())
    }
}

fn parsed<T: DeserializeOwned>(bytes: &[u8]) -> Result<T> {
    serde_json::from_slice(bytes).map_err(|e| Error::new(Exit::Internal, format!("facts of a rank: {e}")))
}

fn quota(base: &Path) -> Option<u64> {
    let space = look::space::of(base).ok()?;
    (space.kind == "Lustre").then(|| look::space::lustre_quota(base)).flatten()
}

/// The better of two times; a failure stays one.
fn merge(old: &mut PlaceFacts, new: PlaceFacts) {
    let better = |old: Option<&Outcome<f64, String>>, new: Outcome<f64, String>| match (old, new) {
        (Some(Ok(a)), Ok(b)) => Ok(a.max(b)),
        (Some(Err(why)), _) => Err(why.clone()),
        (_, new) => new,
    };
    old.written = new.written.map(|w| better(old.written.as_ref(), w));
    old.quota_free = new.quota_free.or(old.quota_free);
    for (other, seen) in new.seen {
        let seen = better(old.seen.get(&other), seen);
        old.seen.insert(other, seen);
    }
}
