//! A served model and a small HTTP client, over Unix sockets and TCP.

use crate::batch::ranks_of;
use crate::support::{herd, mpirun};
use serde_json::Value;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// A running `herd serve`.
pub struct Served {
    child: Child,
    ranks: usize,
    pub run: PathBuf,
    log: PathBuf,
}

pub trait Wire: Read + Write + Send {}
impl<T: Read + Write + Send> Wire for T {}

pub struct Answer {
    pub status: u16,
    pub head: String,
    pub body: String,
}

impl Answer {
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|e| panic!("{e}: {}", self.body))
    }
}

/// The command over `n` ranks.
pub fn command(dir: &Path, n: usize, args: &[&str]) -> Command {
    let mut c = match n {
        1 => herd(),
        _ => {
            let mut c = mpirun(n);
            c.arg(env!("CARGO_BIN_EXE_herd"));
            c
        }
    };
    c.current_dir(dir).args(["serve", "--threads", "1", "--cache-gb", "0.1"]).args(args);
    c.env_remove("SLURM_JOB_ID");
    c
}

/// Waits until `done`; what is waited for is named where it does not come.
pub fn wait(what: &str, mut done: impl FnMut() -> bool) {
    let began = Instant::now();
    while !done() {
        assert!(began.elapsed() < Duration::from_secs(120), "waited in vain: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Starts a server of run directory `run` and waits until it answers.
pub fn serve(dir: &Path, n: usize, run: &str, args: &[&str]) -> Served {
    let log = dir.join(format!("{run}.log"));
    let to = fs::File::options().create(true).append(true).open(&log).unwrap();
    let mut child = command(dir, n, &[args, &[run]].concat()).stdout(Stdio::null()).stderr(to).spawn().unwrap();
    let address = dir.join(run).join("serve.address");
    let began = Instant::now();
    let served = loop {
        if child.try_wait().unwrap().is_some() {
            panic!("it ended: {}", fs::read_to_string(&log).unwrap());
        }
        if address.exists() {
            break Served { child, ranks: n, run: dir.join(run), log };
        }
        assert!(began.elapsed() < Duration::from_secs(120), "{}", fs::read_to_string(&log).unwrap());
        std::thread::sleep(Duration::from_millis(5));
    };
    wait("health", || served.connect().is_ok() && served.ask("GET", "/health", "").status == 200);
    served
}

impl Served {
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn address(&self) -> String {
        fs::read_to_string(self.run.join("serve.address")).unwrap_or_default().trim().to_string()
    }

    fn connect(&self) -> std::io::Result<Box<dyn Wire>> {
        let address = self.address();
        Ok(match address.strip_prefix("http://") {
            Some(tcp) => Box::new(TcpStream::connect(tcp)?),
            None => {
                let path = address.strip_prefix("unix:").unwrap_or_default();
                let path = if path.starts_with('/') { path.into() } else { self.run.parent().unwrap().join(path) };
                Box::new(UnixStream::connect(path)?)
            }
        })
    }

    /// Sends a request; the answer is for the caller to read, or not.
    pub fn send(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Box<dyn Wire> {
        let mut wire = self.connect().unwrap();
        let mut head = format!("{method} {path} HTTP/1.1\r\nHost: herd\r\nConnection: close\r\n");
        for (name, value) in headers {
            head += &format!("{name}: {value}\r\n");
        }
        head += &format!("Content-Length: {}\r\n\r\n", body.len());
        wire.write_all(head.as_bytes()).unwrap();
        // A server may refuse a body before it has read it.
        let _ = wire.write_all(body);
        wire
    }

    pub fn asked(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Answer {
        read(self.send(method, path, headers, body))
    }

    pub fn ask(&self, method: &str, path: &str, body: &str) -> Answer {
        self.asked(method, path, &[], body.as_bytes())
    }

    /// The object that answers a POST which must succeed.
    pub fn post(&self, path: &str, body: &Value) -> Value {
        let answer = self.ask("POST", path, &body.to_string());
        assert_eq!(answer.status, 200, "{body}: {}", answer.body);
        answer.json()
    }

    /// The objects of a stream, which ends as OpenAI's do.
    pub fn stream(&self, path: &str, body: &Value) -> Vec<Value> {
        let answer = self.ask("POST", path, &body.to_string());
        assert!(answer.status == 200 && answer.head.contains("text/event-stream"), "{}", answer.body);
        let mut lines: Vec<&str> = answer.body.split("\n\n").filter(|l| !l.is_empty()).collect();
        assert_eq!(lines.pop(), Some("data: [DONE]"), "{}", answer.body);
        lines.iter().map(|l| serde_json::from_str(l.strip_prefix("data: ").unwrap()).unwrap()).collect()
    }

    /// A number of /metrics.
    pub fn figure(&self, name: &str) -> f64 {
        let page = self.ask("GET", "/metrics", "").body;
        let line = page.lines().find_map(|l| l.strip_prefix(name)?.strip_prefix(' '));
        line.unwrap_or_else(|| panic!("no {name}: {page}")).parse().unwrap()
    }

    pub fn signal(&self, signal: i32) {
        let pids = if self.ranks == 1 { vec![self.child.id()] } else { ranks_of(self.child.id()) };
        for pid in pids {
            // SAFETY: a child that has not been waited for, or its own.
            unsafe { libc::kill(pid as i32, signal) };
        }
    }

    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap()
    }

    /// Its exit code and log.
    pub fn ended(mut self) -> (Option<i32>, String) {
        let status = self.child.wait().unwrap();
        (status.code(), self.log())
    }

    pub fn stop(self) -> String {
        self.signal(libc::SIGTERM);
        let ranks = self.ranks;
        let (code, log) = self.ended();
        // mpirun has codes of its own.
        assert!(ranks > 1 || code == Some(75), "{code:?}: {log}");
        log
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        if self.child.try_wait().is_ok_and(|done| done.is_none()) {
            self.signal(libc::SIGKILL);
            let _ = self.child.wait();
        }
    }
}

/// An answer to its end.
pub fn read(wire: Box<dyn Wire>) -> Answer {
    let mut from = BufReader::new(wire);
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        assert!(from.read_line(&mut head).unwrap() > 0, "no answer: {head}");
    }
    let status = head.split_whitespace().nth(1).unwrap().parse().unwrap();
    let mut body = Vec::new();
    if head.to_lowercase().contains("transfer-encoding: chunked") {
        loop {
            let mut size = String::new();
            from.read_line(&mut size).unwrap();
            let n = usize::from_str_radix(size.trim(), 16).unwrap_or_else(|_| panic!("the answer was cut short"));
            let mut part = vec![0; n + 2];
            from.read_exact(&mut part).unwrap();
            if n == 0 {
                break;
            }
            body.extend(&part[..n]);
        }
    } else {
        from.read_to_end(&mut body).unwrap();
    }
    Answer { status, head, body: String::from_utf8(body).unwrap() }
}

/// Reads until the first event of a stream is there, and no further.
pub fn first_event(wire: &mut Box<dyn Wire>) {
    let (mut got, mut byte) = (Vec::new(), [0u8]);
    while !got.windows(6).any(|w| w == b"data: ") {
        wire.read_exact(&mut byte).unwrap();
        got.push(byte[0]);
    }
}
