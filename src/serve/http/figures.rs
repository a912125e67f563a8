//! Numbers for Prometheus (text exposition format 0.0.4).

use crate::serve::engine::{Engine, EngineTally};
use crate::serve::http::gate::Gate;
use crate::threads::lock;
use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::Mutex;
use std::time::Duration;

/// Upper bounds of the histograms' buckets, in seconds.
const BOUNDS: [f64; 13] = [0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0];

/// All numbers, written by both sides.
#[derive(Default)]
pub struct Figures(Mutex<Values>);

#[derive(Default)]
struct Values {
    tally: EngineTally,
    running: usize,
    waiting: usize,
    held: usize,
    blocks: usize,
    /// By path and status.
    requests: BTreeMap<(String, u16), u64>,
    first_token: SecondsHistogram,
    request: SecondsHistogram,
    left: u64,
}

#[derive(Default)]
struct SecondsHistogram {
    /// Of each bound those that are no more, not those below the bound before; the last is for the rest.
    counts: [u64; BOUNDS.len() + 1],
    sum: f64,
}

impl SecondsHistogram {
    fn add(&mut self, seconds: f64) {
        let at = BOUNDS.iter().position(|&b| seconds <= b).unwrap_or(BOUNDS.len());
        self.counts[at] += 1;
        self.sum += seconds;
    }

    fn write(&self, out: &mut String, name: &str, help: &str) {
        let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} histogram");
        let mut all = 0;
        for (i, count) in self.counts.iter().enumerate() {
            all += count;
            let bound = BOUNDS.get(i).map_or("+Inf".to_string(), f64::to_string);
            let _ = writeln!(out, "{name}_bucket{{le=\"{bound}\"}} {all}");
        }
        let _ = writeln!(out, "{name}_sum {}\n{name}_count {all}", self.sum);
    }
}

impl Figures {
    fn with<T>(&self, work: impl FnOnce(&mut Values) -> T) -> T {
        work(&mut lock(&self.0))
    }

    /// How the engine stands.
    pub fn engine(&self, engine: &Engine) {
        let ((running, waiting), (held, blocks)) = (engine.standing_now(), engine.blocks_now());
        self.with(|v| {
            (v.tally, v.running, v.waiting, v.held, v.blocks) = (engine.tally(), running, waiting, held, blocks);
        });
    }

    /// A request to `path` was answered with this HTTP status.
    pub fn request(&self, path: &str, status: u16) {
        self.with(|v| *v.requests.entry((path.to_string(), status)).or_default() += 1);
    }

    /// The first news of a request, as a rule its first token, came so long after it.
    pub fn first_token(&self, after: Duration) {
        self.with(|v| v.first_token.add(after.as_secs_f64()));
    }

    /// The answer to a request was whole so long after it.
    pub fn answered(&self, after: Duration) {
        self.with(|v| v.request.add(after.as_secs_f64()));
    }

    /// A client went away before its answer was whole.
    pub fn left(&self) {
        self.with(|v| v.left += 1);
    }

    /// The page.
    pub fn page(&self, gate: &Gate) -> String {
        let mut out = String::new();
        self.with(|v| {
            let mut line = |name: &str, kind: &str, help: &str, value: u64| {
                let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} {kind}\n{name} {value}");
            };
            let t = &v.tally;
            line("herd_sequences_running", "gauge", "Texts that the engine is making.", v.running as u64);
            line("herd_sequences_waiting", "gauge", "Texts that wait for their turn.", v.waiting as u64);
            line("herd_texts_accepted", "gauge", "Texts that were accepted and are not done.", gate.inside() as u64);
            line(
                "herd_texts_accepted_max",
                "gauge",
                "How many may be: beyond it requests get 429.",
                gate.most() as u64,
            );
            line("herd_cache_blocks_held", "gauge", "Blocks of the cache that texts hold.", v.held as u64);
            line("herd_cache_blocks", "gauge", "Blocks of the cache.", v.blocks as u64);
            line("herd_iterations_total", "counter", "Passes through the model.", t.iterations);
            line("herd_prefill_tokens_total", "counter", "Tokens read of prompts.", t.prefill);
            line("herd_decode_tokens_total", "counter", "Tokens read one by one.", t.decode);
            line("herd_generated_tokens_total", "counter", "Tokens chosen.", t.chosen);
            line("herd_prefix_tokens_total", "counter", "Tokens that were not read: the cache had them.", t.shared);
            line(
                "herd_proposed_tokens_total",
                "counter",
                "Tokens that were proposed and read before they were chosen.",
                t.proposed,
            );
            line(
                "herd_accepted_tokens_total",
                "counter",
                "Tokens that were chosen as they had been proposed.",
                t.accepted,
            );
            line("herd_gave_up_total", "counter", "Texts that gave up their blocks to others for a while.", t.gave_up);
            line("herd_clients_left_total", "counter", "Clients that went away before their answer was whole.", v.left);
            line("herd_stopping", "gauge", "1: accepts no more.", u64::from(gate.is_closed()));
            let (name, help) = ("herd_http_requests_total", "Answers, by path and status.");
            let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} counter");
            for ((path, status), count) in &v.requests {
                let _ = writeln!(out, "{name}{{path=\"{path}\",status=\"{status}\"}} {count}");
            }
            v.first_token.write(&mut out, "herd_first_token_seconds", "From a request to its first token.");
            v.request.write(&mut out, "herd_request_seconds", "From a request to the end of its answer.");
        });
        out
    }
}
