//! How far a long run of `herd data tokenize` is.

use super::super::grouped;
use super::report::mega;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::time::{Duration, Instant};

/// How often a line is printed where there is no terminal.
const LINE_EVERY: Duration = Duration::from_secs(10);

/// A bar on a terminal; elsewhere a line now and then.
pub struct Progress {
    bar: ProgressBar,
    total: Option<u64>,
    last: Instant,
}

impl Progress {
    pub fn new(total: Option<u64>) -> Progress {
        let bar = match total {
            Some(n) => ProgressBar::new(n),
            None => ProgressBar::no_length(),
        };
        bar.set_draw_target(ProgressDrawTarget::stderr());
        let shape = match total {
            Some(_) => "{bar:30} {bytes}/{total_bytes} {bytes_per_sec} {msg} eta {eta}",
            None => "{spinner} {bytes} {bytes_per_sec} {msg}",
        };
        if let Ok(style) = ProgressStyle::with_template(shape) {
            bar.set_style(style);
        }
        Progress { bar, total, last: Instant::now() }
    }

    pub fn tick(&mut self, consumed: u64, tokens: u64, began: Instant) {
        if !self.bar.is_hidden() {
            self.bar.set_position(consumed);
            self.bar.set_message(format!("{} tokens", grouped(tokens)));
        } else if self.last.elapsed() >= LINE_EVERY {
            self.last = Instant::now();
            let of = self.total.map(|t| format!(" of {:.1}", mega(t))).unwrap_or_default();
            let rate = mega(consumed) / began.elapsed().as_secs_f64().max(1e-3);
            eprintln!("read {:.1}{of} MB, {rate:.2} MB/s, {} tokens", mega(consumed), grouped(tokens));
        }
    }

    pub fn end(&self) {
        self.bar.finish_and_clear();
    }
}
