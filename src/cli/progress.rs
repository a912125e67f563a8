//! How far a long command is, on stderr: a bar on a terminal, elsewhere a line now and then.

use crate::progress::{Meter, Reading};
use crate::threads::lock;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::collections::VecDeque;
use std::io::Write;
use std::sync::mpsc::{channel, Receiver, RecvTimeoutError, Sender};
use std::sync::{Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// How often the meter is read.
const LOOK: Duration = Duration::from_millis(200);
/// What is done sooner shows no bar.
const BAR_AFTER: Duration = Duration::from_millis(500);
/// Without a terminal, what is done sooner says nothing.
const LINES_AFTER: Duration = Duration::from_secs(5);
const LINE_EVERY: Duration = Duration::from_secs(10);
/// A speed is the mean over this time.
const WINDOW: Duration = Duration::from_secs(10);
/// A work of which nothing was done for so long stands still.
const STILL: Duration = Duration::from_secs(5);

/// The bar on this process's terminal, which a line of the log must not cut in two.
static BAR: Mutex<Option<ProgressBar>> = Mutex::new(None);

/// Does `work` and meanwhile shows the meter that it is to count with; nothing of a bar stays on the screen.
pub fn shown<T>(work: impl FnOnce(&Meter) -> T) -> T {
    let meter = Meter::default();
    shown_by(&meter, || work(&meter))
}

/// Does `work` and meanwhile shows `meter`.
pub fn shown_by<T>(meter: &Meter, work: impl FnOnce() -> T) -> T {
    let _shown = Shown::start(meter);
    work()
}

struct Shown {
    stop: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Shown {
    fn start(meter: &Meter) -> Shown {
        let (theirs, (stop, stopped)) = (meter.clone(), channel());
        let thread = std::thread::Builder::new().name("herd-progress".into()).spawn(move || show(&theirs, &stopped));
        if let Err(e) = &thread {
            tracing::warn!("no progress is shown: {e}");
        }
        Shown { stop: Some(stop), thread: thread.ok() }
    }
}

impl Drop for Shown {
    fn drop(&mut self) {
        self.stop = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn show(meter: &Meter, stopped: &Receiver<()>) {
    let began = Instant::now();
    let (mut pace, mut lines) = (Pace::default(), Lines::default());
    let target = ProgressDrawTarget::stderr();
    let terminal = !target.is_hidden();
    let (bar, mut phase) = (ProgressBar::with_draw_target(None, target), 0);
    while stopped.recv_timeout(LOOK) == Err(RecvTimeoutError::Timeout) {
        let (now, reading) = (began.elapsed(), meter.read());
        let rate = pace.rate(now, &reading);
        match terminal {
            true if now >= BAR_AFTER && reading.phase > 0 => {
                if phase != reading.phase {
                    phase = reading.phase;
                    shape(&bar, &reading);
                }
                draw(&bar, &reading, told(&reading, rate, now - pace.since));
            }
            false if lines.due(now, &reading) => say(&told(&reading, rate, now - pace.since)),
            _ => {}
        }
    }
    *current() = None;
    bar.finish_and_clear();
}

fn current() -> MutexGuard<'static, Option<ProgressBar>> {
    lock(&BAR)
}

/// A closed stderr must not end the work, as `eprintln!` would.
fn say(line: &str) {
    let _ = writeln!(std::io::stderr(), "{line}");
}

fn told(reading: &Reading, rate: Option<f64>, past: Duration) -> String {
    match reading.pieces {
        Some(_) => pieces(reading, rate, past),
        None => line(reading, rate),
    }
}

fn draw(bar: &ProgressBar, reading: &Reading, line: String) {
    current().get_or_insert_with(|| bar.clone());
    bar.set_message(line);
    bar.update(|state| {
        state.set_len(reading.total.unwrap_or_default());
        state.set_pos(reading.done);
    });
}

/// What is cut off on a narrow terminal is the end of the words.
fn shape(bar: &ProgressBar, reading: &Reading) {
    let shape = if reading.total.is_some() { "{bar:20.cyan/dim} {wide_msg}" } else { "{spinner} {wide_msg}" };
    if let Ok(style) = ProgressStyle::with_template(shape) {
        bar.set_style(style);
    }
}

/// Standard error for the log: a line that comes while a bar stands is printed above it.
pub struct Beside;

impl Write for Beside {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        match current().as_ref() {
            Some(bar) => bar.suspend(|| std::io::stderr().write(bytes)),
            None => std::io::stderr().write(bytes),
        }
    }

    fn flush(&mut self) -> std::io::Result<()> {
        std::io::stderr().flush()
    }
}

/// When a line is due where there is no terminal.
struct Lines {
    next: Duration,
}

impl Default for Lines {
    fn default() -> Lines {
        Lines { next: LINES_AFTER }
    }
}

impl Lines {
    fn due(&mut self, now: Duration, reading: &Reading) -> bool {
        let due = now >= self.next && reading.phase > 0;
        if due {
            self.next = now + LINE_EVERY;
        }
        due
    }
}

/// The last readings of a phase, oldest first.
#[derive(Default)]
struct Pace {
    phase: u64,
    /// When, and how many bytes; of pieces the tokens made of them.
    seen: VecDeque<(Duration, u64)>,
    /// When the phase began to be looked at.
    since: Duration,
}

impl Pace {
    /// Bytes per second in the last [`WINDOW`] of this phase, where pieces are counted tokens; `None` while there is too little
    /// to say.
    fn rate(&mut self, now: Duration, reading: &Reading) -> Option<f64> {
        if self.phase != reading.phase {
            self.phase = reading.phase;
            self.seen.clear();
            self.since = now;
        }
        let done = if reading.pieces.is_some() { reading.tokens } else { reading.done };
        self.seen.push_back((now, done));
        while self.seen.len() > 2 && now - self.seen[1].0 >= WINDOW {
            self.seen.pop_front();
        }
        let (then, had) = self.seen[0];
        let (time, bytes) = (now - then, done.saturating_sub(had));
        let told = time >= if bytes > 0 { BAR_AFTER } else { STILL };
        told.then(|| bytes as f64 / time.as_secs_f64())
    }
}

/// `batch: 12 of 100 requests, 1,234 tokens, 56 tokens/s, 28 s left`: what is left by the mean of the time `past`, since pieces end
/// when they will.
fn pieces(reading: &Reading, rate: Option<f64>, past: Duration) -> String {
    let Reading { what, pieces, done, total, tokens, .. } = reading;
    let (done, total) = (*done, total.unwrap_or_default());
    let named = pieces.unwrap_or_default();
    let mut line = format!("{what}: {} of {} {named}", crate::text::grouped(done), crate::text::grouped(total));
    line += &format!(", {} tokens", crate::text::grouped(*tokens));
    line += &match rate {
        _ if done >= total => return line + ", finishing",
        None => return line,
        Some(rate) if rate <= 0.0 => return line + ", standing still",
        Some(rate) => format!(", {rate:.0} tokens/s"),
    };
    match done {
        0 => line,
        _ => line + &format!(", {} left", time(past.as_secs_f64() / done as f64 * (total - done) as f64)),
    }
}

/// `verify: 12.3 of 45.6 GB, 1.2 GB/s, 28 s left`
fn line(reading: &Reading, rate: Option<f64>) -> String {
    let Reading { what, done, total, tokens, .. } = reading;
    let mut line = match total {
        Some(total) => {
            let (scale, unit) = unit(*total as f64);
            format!("{what}: {:.1} of {:.1} {unit}", *done as f64 / scale, *total as f64 / scale)
        }
        None => format!("{what}: {}", amount(*done as f64)),
    };
    if *tokens > 0 {
        line += &format!(", {} tokens", crate::text::grouped(*tokens));
    }
    line + &match (rate, total) {
        (_, Some(total)) if done >= total => ", finishing".into(),
        (None, _) => String::new(),
        (Some(rate), _) if rate <= 0.0 => ", standing still".into(),
        (Some(rate), None) => format!(", {}/s", amount(rate)),
        (Some(rate), Some(total)) => format!(", {}/s, {} left", amount(rate), time((total - done) as f64 / rate)),
    }
}

/// Powers of 1000.
fn unit(bytes: f64) -> (f64, &'static str) {
    match bytes {
        b if b >= 1e12 => (1e12, "TB"),
        b if b >= 1e9 => (1e9, "GB"),
        b if b >= 1e6 => (1e6, "MB"),
        _ => (1e3, "kB"),
    }
}

fn amount(bytes: f64) -> String {
    let (scale, unit) = unit(bytes);
    format!("{:.1} {unit}", bytes / scale)
}

/// The two largest units: `5 s`, `2 min 10 s`, `3 h 4 min`, `2 d 5 h`.
fn time(seconds: f64) -> String {
    let s = seconds.ceil() as u64;
    match s {
        0..60 => format!("{s} s"),
        60..3600 => format!("{} min {} s", s / 60, s % 60),
        3600..86_400 => format!("{} h {} min", s / 3600, s % 3600 / 60),
        _ => format!("{} d {} h", s / 86_400, s % 86_400 / 3600),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn reading(done: u64, total: Option<u64>) -> Reading {
        Reading { phase: 1, what: "verify".into(), done, total, ..Reading::default() }
    }

    #[test]
    fn a_line_reads_as_documented() {
        let r = reading(12_300_000_000, Some(45_600_000_000));
        assert_eq!(line(&r, Some(1.2e9)), "verify: 12.3 of 45.6 GB, 1.2 GB/s, 28 s left");
        assert_eq!(line(&r, Some(0.0)), "verify: 12.3 of 45.6 GB, standing still");
        assert_eq!(line(&r, None), "verify: 12.3 of 45.6 GB");
        assert_eq!(line(&reading(10, Some(10)), Some(5.0)), "verify: 0.0 of 0.0 kB, finishing");
        assert_eq!(line(&reading(1_234_567, None), Some(2e3)), "verify: 1.2 MB, 2.0 kB/s");
        let tokens = Reading { tokens: 1234, ..reading(2_000_000, Some(4_000_000)) };
        assert_eq!(line(&tokens, Some(1e6)), "verify: 2.0 of 4.0 MB, 1,234 tokens, 1.0 MB/s, 2 s left");
    }

    #[test]
    fn pieces_have_the_speed_of_their_tokens() {
        let r = Reading { what: "batch".into(), pieces: Some("requests"), tokens: 1234, ..reading(20, Some(100)) };
        let said = |r: &Reading, rate| told(r, rate, at(7));
        assert_eq!(said(&r, Some(56.4)), "batch: 20 of 100 requests, 1,234 tokens, 56 tokens/s, 28 s left");
        assert_eq!(said(&r, Some(0.0)), "batch: 20 of 100 requests, 1,234 tokens, standing still");
        assert_eq!(
            said(&Reading { done: 0, ..r.clone() }, Some(5.0)),
            "batch: 0 of 100 requests, 1,234 tokens, 5 tokens/s"
        );
        assert_eq!(
            said(&Reading { done: 100, ..r.clone() }, None),
            "batch: 100 of 100 requests, 1,234 tokens, finishing"
        );
        let mut pace = Pace::default();
        let of = |tokens| Reading { tokens, ..r.clone() };
        assert_eq!((pace.rate(at(0), &of(0)), pace.rate(at(2), &of(50))), (None, Some(25.0)));
    }

    #[test]
    fn times_have_two_units() {
        assert_eq!([59.2, 130.0, 11_040.0, 190_800.0].map(time), ["1 min 0 s", "2 min 10 s", "3 h 4 min", "2 d 5 h"]);
        assert_eq!([0.1, 28.0].map(time), ["1 s", "28 s"]);
    }

    #[test]
    fn lines_come_after_five_seconds_and_then_every_ten() {
        let (mut lines, r) = (Lines::default(), reading(1, Some(2)));
        let said: Vec<u64> = (0..40).filter(|&s| lines.due(at(s), &r)).collect();
        assert_eq!(said, [5, 15, 25, 35]);
        let (mut lines, nothing) = (Lines::default(), Reading::default());
        assert!((0..40).all(|s| !lines.due(at(s), &nothing)), "where no work has begun there is nothing to say");
        assert!(lines.due(at(41), &r) && !lines.due(at(50), &r) && lines.due(at(51), &r));
    }

    #[test]
    fn a_speed_is_of_the_last_seconds_of_this_phase() {
        let mut pace = Pace::default();
        assert_eq!(pace.rate(at(0), &reading(0, None)), None);
        assert_eq!(pace.rate(at(1), &reading(100, None)), Some(100.0));
        // ten bytes a second from then on: after eleven seconds the first hundred are forgotten
        let rates: Vec<f64> = (2..=12).filter_map(|s| pace.rate(at(s), &reading(90 + 10 * s, None))).collect();
        assert!(rates[0] > 50.0 && rates[8] > 10.0, "{rates:?}");
        assert_eq!(rates[10], 10.0);
        assert_eq!(pace.rate(at(13), &Reading { phase: 2, ..reading(0, None) }), None, "a phase has its own");
        assert_eq!(pace.rate(at(17), &Reading { phase: 2, ..reading(0, None) }), None, "it may have begun slowly");
        assert_eq!(pace.rate(at(30), &Reading { phase: 2, ..reading(0, None) }), Some(0.0), "a standstill is one");
    }
}
