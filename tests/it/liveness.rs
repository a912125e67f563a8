//! Liveness on real ranks: stopped, killed, hung and fenced processes, under mpirun on one host.

use super::train::{herd_pids, losses, wait_for_step, Run};
use crate::support::text;
use herd::attempt;
use herd::error::Exit;
use herd::liveness::{choose, Phase, Reason, Verdict, VerdictFolder};
use herd::run_dir::RunDir;
use std::path::{Path, PathBuf};
use std::process::{Child, ExitStatus, Stdio};
use std::time::{Duration, Instant};

/// Probes every second: detection within three of them and a second.
const INTERVAL: f64 = 1.0;
const BOUND: f64 = 3.0 * INTERVAL + 1.0;
/// What a loaded test host may add.
const LOAD: f64 = 1.5;

/// A run under way that takes long enough to be disturbed.
struct Live {
    run: Run,
    dir: PathBuf,
    child: Child,
    began: Instant,
}

impl Live {
    fn start(ranks: usize, set: &[&str]) -> Live {
        let run = Run::new();
        let dir = run.path("run");
        let child = spawn(&run, ranks, set);
        Live { run, dir, child, began: Instant::now() }
    }

    /// The process of each rank, after step `step`.
    fn pids(&mut self, ranks: usize, step: u64) -> Vec<i32> {
        wait_for_step(&self.dir, step, &mut self.child);
        let mut found: Vec<(usize, i32)> = Vec::new();
        for pid in herd_pids(self.child.id()) {
            found.push((rank_of(pid), pid));
        }
        found.sort_unstable();
        assert_eq!(found.iter().map(|f| f.0).collect::<Vec<_>>(), (0..ranks).collect::<Vec<_>>());
        found.into_iter().map(|f| f.1).collect()
    }

    fn order(&self, rank: usize, order: &str) {
        let path = RunDir::new(&self.dir).drill_order(rank);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        let new = path.with_extension("new");
        std::fs::write(&new, order).unwrap();
        std::fs::rename(new, path).unwrap();
    }

    /// What the supervisor would make of the verdicts, and after how long from now there is one.
    fn verdict(&mut self, limit: f64) -> (Verdict, f64) {
        let began = Instant::now();
        loop {
            let mut folder = VerdictFolder::new(&self.dir, attempt_of(&self.dir));
            if let Some(v) = choose(folder.all().unwrap()) {
                return (v, began.elapsed().as_secs_f64());
            }
            assert!(began.elapsed().as_secs_f64() < limit, "no verdict within {limit} s: {:?}", self.child.try_wait());
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    fn ends(&mut self, limit: f64) -> ExitStatus {
        ends(&mut self.child, limit)
    }
}

fn spawn(run: &Run, ranks: usize, set: &[&str]) -> Child {
    let interval = format!("liveness.interval_s={INTERVAL}");
    let all: Vec<&str> = [interval.as_str(), "liveness.grace_s=2", "validation.every=0", "batch.global=12"]
        .into_iter()
        .chain(set.iter().copied())
        .collect();
    let log = std::fs::File::create(run.path("log.txt")).unwrap();
    run.command(ranks, &all).stdout(Stdio::null()).stderr(log).spawn().unwrap()
}

impl Drop for Live {
    /// Whatever a failed assertion left.
    fn drop(&mut self) {
        for pid in herd_pids(self.child.id()).into_iter().chain([self.child.id() as i32]) {
            signal(pid, libc::SIGKILL);
        }
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("{:.1} s after the start: {}", self.began.elapsed().as_secs_f64(), said(&self.run));
        }
    }
}

fn said(run: &Run) -> String {
    std::fs::read_to_string(run.path("log.txt")).unwrap_or_default()
}

fn ends(child: &mut Child, limit: f64) -> ExitStatus {
    let began = Instant::now();
    loop {
        if let Some(status) = child.try_wait().unwrap() {
            return status;
        }
        assert!(began.elapsed().as_secs_f64() < limit, "the run goes on after {limit} s");
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn rank_of(pid: i32) -> usize {
    let environment = std::fs::read(format!("/proc/{pid}/environ")).unwrap();
    let found = environment.split(|&b| b == 0).find_map(|v| v.strip_prefix(b"OMPI_COMM_WORLD_RANK=".as_slice()));
    found.map_or(0, |v| String::from_utf8_lossy(v).parse().unwrap())
}

fn attempt_of(dir: &Path) -> u64 {
    attempt::newest(dir).unwrap().unwrap().attempt
}

fn signal(pid: i32, number: i32) {
    // SAFETY: a process that this test started.
    unsafe { libc::kill(pid, number) };
}

const LONG: &str = "train.steps=100000";

#[test]
fn a_stopped_rank_is_named_and_the_others_leave() {
    // An ordinary rank, and the monitor.
    for rank in [2, 0] {
        let mut live = Live::start(3, &[LONG, "checkpoint.every=0"]);
        let pids = live.pids(3, 3);
        signal(pids[rank], libc::SIGSTOP);
        let (v, took) = live.verdict(30.0);
        println!("rank {rank} stopped: verdict after {took:.2} s");
        assert_eq!((v.reason, &v.ranks[..]), (Reason::MissedProbes, &[rank][..]), "{v:?}");
        assert!(took < BOUND + LOAD && took > 2.0 * INTERVAL, "{took}");
        assert!(v.evidence.age_s.unwrap() > 3.0 * INTERVAL && v.exit == Exit::Peer.code(), "{v:?}");
        assert_eq!(live.ends(10.0).code(), Some(Exit::Peer.code()));
        let log = said(&live.run);
        assert!(log.contains("herd: verdict: ") && log.contains(&format!("rank {rank} (")), "{log}");
        let events = std::fs::read_to_string(live.dir.join("events.jsonl")).unwrap();
        assert!(events.contains("\"kind\":\"verdict\""), "{events}");
    }
}

#[test]
fn a_rank_stopped_for_two_intervals_goes_on_to_the_same_losses() {
    let mut live = Live::start(3, &["train.steps=40"]);
    for rank in [1, 0] {
        let pid = live.pids(3, 2)[rank];
        signal(pid, libc::SIGSTOP);
        std::thread::sleep(Duration::from_secs_f64(2.0 * INTERVAL));
        signal(pid, libc::SIGCONT);
        std::thread::sleep(Duration::from_secs_f64(0.2));
        if live.child.try_wait().unwrap().is_some() {
            break;
        }
    }
    assert!(live.ends(120.0).success(), "{}", said(&live.run));
    assert!(!live.dir.join("verdicts").exists());
    let disturbed = losses(&live.dir);
    let dir = live.run.path("undisturbed");
    let set = format!("run_dir={}", dir.display());
    // The watch changes nothing either.
    let mut child = spawn(&live.run, 3, &["train.steps=40", &set, "liveness.enabled=false"]);
    assert!(ends(&mut child, 120.0).success());
    let quiet = losses(&dir);
    assert_eq!(disturbed.len(), 40);
    assert!(disturbed.iter().zip(&quiet).all(|(a, b)| a.to_bits() == b.to_bits()));
}

/// A process that slept while a newer attempt was started: it leaves, and nothing of it is in the run directory.
#[test]
fn a_process_of_an_older_attempt_can_neither_write_nor_join() {
    let mut live = Live::start(0, &[LONG, "checkpoint.every=1", "checkpoint.keep=2"]);
    let pid = live.pids(1, 3)[0];
    signal(pid, libc::SIGSTOP);
    std::thread::sleep(Duration::from_millis(100));
    let own = attempt_of(&live.dir);
    attempt::announce(&live.dir, own + 1, true).unwrap();
    let before = listing(&live.dir);
    std::thread::sleep(Duration::from_millis(700));
    signal(pid, libc::SIGCONT);
    assert_eq!(live.ends(10.0).code(), Some(Exit::Fenced.code()), "{}", said(&live.run));
    let after = listing(&live.dir);
    // What it was in the middle of writing has a temporary name or is a whole line.
    assert_eq!(before["metrics.jsonl"], after["metrics.jsonl"]);
    assert_eq!(before["events.jsonl"], after["events.jsonl"]);
    assert!(!live.dir.join("verdicts").exists());
    let mut old = live.run.command(0, &[LONG]);
    let out = old.env("HERD_ATTEMPT", own.to_string()).output().unwrap();
    assert_eq!(out.status.code(), Some(Exit::Fenced.code()), "{}", text(&out));
    assert_eq!(listing(&live.dir), after);
}

fn listing(dir: &Path) -> std::collections::BTreeMap<String, u64> {
    let entries = std::fs::read_dir(dir).unwrap().flatten();
    entries
        .map(|e| (e.file_name().to_string_lossy().into_owned(), e.metadata().unwrap().len()))
        .filter(|(n, _)| n.ends_with("jsonl"))
        .collect()
}

const TIGHT: [&str; 3] = ["liveness.progress_floor_s=2", "liveness.progress_factor=2", "liveness.interval_s=0.5"];

#[test]
fn a_rank_that_does_not_enter_a_collective_is_named() {
    let mut live = Live::start(3, &[&[LONG, "checkpoint.every=0"][..], &TIGHT].concat());
    live.pids(3, 3);
    live.order(1, r#"{"kind": "stall_collective", "seconds": 600}"#);
    let (v, took) = live.verdict(60.0);
    println!("stalled collective: verdict after {took:.2} s: {}", v.fact);
    assert_eq!((v.reason, &v.ranks[..]), (Reason::NoProgress, &[1][..]), "{v:?}");
    assert!(v.evidence.waiting.iter().any(|w| w.waits_for == [1]), "{v:?}");
    assert_eq!(live.ends(10.0).code(), Some(Exit::Peer.code()));
}

#[test]
fn a_rank_that_leaves_a_collective_out_is_named() {
    let mut live = Live::start(3, &[&[LONG, "checkpoint.every=0"][..], &TIGHT].concat());
    live.pids(3, 3);
    live.order(1, r#"{"kind": "skip_collective"}"#);
    let (v, took) = live.verdict(60.0);
    println!("skipped collective: verdict after {took:.2} s: {}", v.fact);
    assert_eq!((v.reason, &v.ranks[..]), (Reason::SkippedCollective, &[1][..]), "{v:?}");
    assert!(!live.ends(10.0).success());
}

#[test]
fn storage_that_blocks_and_comes_back_is_no_fault() {
    let mut live = Live::start(2, &[&["train.steps=20"][..], &TIGHT].concat());
    live.order(0, r#"{"kind": "sleep_io", "seconds": 8}"#);
    live.order(1, r#"{"kind": "slow", "seconds": 0.05, "steps": 3}"#);
    assert!(live.ends(120.0).success(), "{}", said(&live.run));
    assert!(!live.dir.join("verdicts").exists() && live.began.elapsed() > Duration::from_secs(8));
}

/// The main thread hangs in open(2), which no flag can end.
#[test]
fn storage_that_never_answers_is_a_bounded_end() {
    let run = Run::new();
    let dir = run.path("run");
    std::fs::create_dir(&dir).unwrap();
    let fifo = std::ffi::CString::new(dir.join("metrics.jsonl").to_str().unwrap()).unwrap();
    // SAFETY: a path that ends in a zero.
    assert_eq!(unsafe { libc::mkfifo(fifo.as_ptr(), 0o600) }, 0);
    let limits = ["liveness.first_step_s=3", "liveness.storage_s=3", "liveness.interval_s=0.5"];
    let child = spawn(&run, 2, &limits);
    let mut live = Live { run, dir, child, began: Instant::now() };
    let status = live.ends(40.0);
    assert_eq!(status.code(), Some(Exit::Peer.code()), "{}", said(&live.run));
    let (v, _) = live.verdict(1.0);
    assert_eq!((v.reason, &v.ranks[..], v.phase), (Reason::NoProgress, &[0][..], Phase::Start), "{v:?}");
}

#[test]
fn a_run_s_own_failure_is_written_down() {
    let run = Run::new();
    let out =
        run.train(2, &["optim.lr=1e38", "optim.warmup_steps=0", "train.max_skipped_steps=2", "optim.min_lr=1e38"]);
    assert_eq!(out.status.code(), Some(Exit::NonFinite.code()), "{}", text(&out));
    let all = VerdictFolder::new(&run.path("run"), 0).all().unwrap().to_vec();
    assert_eq!(all.len(), 1);
    assert_eq!((all[0].reason, all[0].exit), (Reason::NonFinite, Exit::NonFinite.code()));
    // One rank's failure, on which all agree.
    let bin = run.path("corpus_train.bin");
    std::fs::write(&bin, b"short").unwrap();
    let out = run.train(2, &[]);
    assert_eq!(out.status.code(), Some(Exit::Data.code()), "{}", text(&out));
    let v = choose(VerdictFolder::new(&run.path("run"), 1).all().unwrap()).unwrap();
    assert_eq!(v.reason, Reason::UserError);
    assert!(v.fact.contains("corpus_train.bin"), "{}", v.fact);
}

#[test]
fn a_nan_on_order_skips_one_step() {
    let mut live = Live::start(2, &["train.steps=12", "checkpoint.every=0"]);
    live.order(1, r#"{"kind": "nan_gradient", "at_step": 5}"#);
    assert!(live.ends(120.0).success(), "{}", said(&live.run));
    let events = std::fs::read_to_string(live.dir.join("events.jsonl")).unwrap();
    assert!(events.contains("\"kind\":\"skipped_step\"") && events.contains("\"fault\":\"nan_gradient\""), "{events}");
}
