//! Telling people: webhook, mail command, a program of the user's. Each alert goes out once, on a thread of its own and
//! with a time limit; whatever goes wrong with it, the run does not notice.
//!
//! A webhook's address is a secret. It is read at the moment of use from an environment variable or a file, and is in no
//! event, log line or error message.

use crate::config::{AlertKind, AlertsSection};
use crate::host;
use crate::slurm::process;
use serde_json::{json, Map, Value};
use std::collections::{HashSet, VecDeque};
use std::io::Write;
use std::process::{Command, Stdio};
use std::sync::mpsc::{channel, Receiver, Sender};
use std::time::{Duration, Instant};

/// What came of one alert on one channel.
#[derive(Debug)]
pub struct Sent {
    pub kind: AlertKind,
    pub channel: &'static str,
    /// Why it failed, without the address.
    pub failure: Option<String>,
}

pub struct Alerts {
    config: AlertsSection,
    /// Said in every alert: name of the run, its directory, the job.
    about: Map<String, Value>,
    told: HashSet<String>,
    limit: RateLimit,
    results: (Sender<Sent>, Receiver<Sent>),
    under_way: usize,
}

impl Alerts {
    pub fn new(config: &AlertsSection, about: Map<String, Value>) -> Alerts {
        let limit = RateLimit::new(config.per_hour);
        Alerts { config: config.clone(), about, told: HashSet::new(), limit, results: channel(), under_way: 0 }
    }

    /// Sends one alert, unless one with this `key` went out already, its kind is not asked for, or there were too many in
    /// the last hour. Returns at once.
    pub fn tell(&mut self, kind: AlertKind, key: &str, text: &str, fields: Value) {
        let channels = self.channels();
        if channels.is_empty() || !self.config.events.contains(&kind) || !self.told.insert(format!("{kind:?} {key}")) {
            return;
        }
        let Some(left_out) = self.limit.admit(Instant::now()) else { return };
        let mut body = Map::new();
        let name = self.about.get("run").and_then(Value::as_str).unwrap_or_default();
        let more =
            if left_out > 0 { format!(" ({left_out} alerts before this one were left out)") } else { String::new() };
        body.insert("text".into(), json!(format!("herd: {name}: {text}{more}")));
        body.insert("kind".into(), json!(kind));
        body.insert("time".into(), json!(jiff::Timestamp::now()));
        body.extend(self.about.clone());
        if let Value::Object(fields) = fields {
            body.extend(fields);
        }
        for channel in channels {
            self.under_way += 1;
            let (config, body, results) = (self.config.clone(), body.clone(), self.results.0.clone());
            std::thread::spawn(move || {
                let failure = send(channel, &config, &body).err();
                let _ = results.send(Sent { kind, channel, failure });
            });
        }
    }

    /// What has come of alerts since the last call.
    pub fn results(&mut self) -> Vec<Sent> {
        let done: Vec<Sent> = self.results.1.try_iter().collect();
        self.under_way -= done.len();
        done
    }

    /// Waits for the alerts that are under way, no longer than one may take.
    pub fn finish(&mut self) -> Vec<Sent> {
        let end = Instant::now() + Duration::from_secs_f64(self.config.timeout_s) + Duration::from_secs(1);
        let mut done = Vec::new();
        while self.under_way > 0 && Instant::now() < end {
            done.extend(self.results());
            std::thread::sleep(Duration::from_millis(10));
        }
        done
    }

    fn channels(&self) -> Vec<&'static str> {
        let c = &self.config;
        let all = [
            ("webhook", c.webhook_env.is_some() || c.webhook_file.is_some()),
            ("mail", !c.mail.is_empty()),
            ("command", !c.command.is_empty()),
        ];
        all.into_iter().filter(|(_, on)| *on).map(|(name, _)| name).collect()
    }
}

/// At most so many in any hour.
struct RateLimit {
    per_hour: u64,
    recent: VecDeque<Instant>,
    left_out: u64,
}

impl RateLimit {
    fn new(per_hour: u64) -> RateLimit {
        RateLimit { per_hour, recent: VecDeque::new(), left_out: 0 }
    }

    /// Whether one may go out now, with the number that were left out since the last.
    fn admit(&mut self, now: Instant) -> Option<u64> {
        while self.recent.front().is_some_and(|t| now.duration_since(*t) >= Duration::from_secs(3600)) {
            self.recent.pop_front();
        }
        if self.recent.len() as u64 >= self.per_hour {
            self.left_out += 1;
            return None;
        }
        self.recent.push_back(now);
        Some(std::mem::take(&mut self.left_out))
    }
}

fn send(channel: &str, config: &AlertsSection, body: &Map<String, Value>) -> Result<(), String> {
    let limit = Duration::from_secs_f64(config.timeout_s);
    let text = body.get("text").and_then(Value::as_str).unwrap_or_default();
    match channel {
        "webhook" => post(&address(config)?, &Value::Object(body.clone()), limit),
        "mail" => {
            let line: Vec<String> = config.mail.iter().map(|a| a.replace("{subject}", text)).collect();
            let mut letter = format!("{text}\n\n");
            for (key, value) in body.iter().filter(|(k, _)| *k != "text") {
                letter += &format!("{key}: {}\n", value.as_str().map_or(value.to_string(), str::to_string));
            }
            feed(&line, &letter, limit)
        }
        _ => feed(&config.command, &format!("{}\n", Value::Object(body.clone())), limit),
    }
}

/// The webhook's address from where the configuration says it stands.
fn address(config: &AlertsSection) -> Result<String, String> {
    let text = match (&config.webhook_env, &config.webhook_file) {
        (Some(name), _) => std::env::var(name).map_err(|_| format!("{name} (alerts.webhook_env) is not set"))?,
        (_, Some(path)) => std::fs::read_to_string(path).map_err(|e| format!("alerts.webhook_file: {e}"))?,
        _ => return Err("no webhook".into()),
    };
    match text.trim() {
        "" => Err("the webhook's address is empty".into()),
        address => Ok(address.to_string()),
    }
}

fn post(address: &str, body: &Value, limit: Duration) -> Result<(), String> {
    let agent: ureq::Agent = ureq::Agent::config_builder().timeout_global(Some(limit)).build().into();
    let sent = agent.post(address).header("content-type", "application/json").send(body.to_string());
    // the library's own words may hold the address
    match sent {
        Ok(_) => Ok(()),
        Err(ureq::Error::StatusCode(code)) => Err(format!("HTTP status {code}")),
        Err(ureq::Error::Timeout(_)) => Err(format!("no answer within {} s", limit.as_secs_f64())),
        Err(ureq::Error::BadUri(_) | ureq::Error::Http(_)) => Err("the address is no http or https address".into()),
        Err(ureq::Error::HostNotFound) => Err("the host is unknown".into()),
        Err(ureq::Error::Tls(_) | ureq::Error::Rustls(_)) => Err("TLS failed".into()),
        Err(_) => Err("the connection failed".into()),
    }
}

/// Runs a command with `text` on its standard input.
fn feed(line: &[String], text: &str, limit: Duration) -> Result<(), String> {
    let [program, arguments @ ..] = line else { return Err("no command".into()) };
    let mut child = host::spawn(Command::new(program).args(arguments).stdin(Stdio::piped()).stdout(Stdio::null()))
        .map_err(|e| format!("{program}: {e}"))?;
    if let Some(mut stdin) = child.input.take() {
        // far below a pipe's capacity; a program that does not read gets a broken pipe, which is its own affair
        let _ = stdin.write_all(text.as_bytes());
    }
    match process::within(&mut child.process, limit) {
        Some(0) => Ok(()),
        Some(code) => Err(format!("{program} ended with code {code}")),
        None => {
            child.process.end();
            Err(format!("{program} did not end within {} s", limit.as_secs_f64()))
        }
    }
}

#[cfg(test)]
#[path = "alert_tests.rs"]
mod tests;
