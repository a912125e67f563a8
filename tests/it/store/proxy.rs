//! A proxy in front of a server that answers with errors, cuts connections, is slow, or kills somebody at a request.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::Arc;
use std::time::Duration;

/// What becomes of one request.
pub enum Fault {
    None,
    /// Answered with this status; the server never sees it.
    Status(u16),
    /// The connection ends after half of the body.
    CutRequest,
    /// The server does it, the client never hears of it.
    CutAnswer,
    /// Held up for this long.
    Slow(Duration),
}

pub struct Request {
    /// 1 for the first.
    pub number: usize,
    pub method: String,
    pub length: usize,
}

type Decide = dyn Fn(&Request) -> Fault + Send + Sync;

pub struct Proxy {
    pub port: u16,
    stop: Arc<AtomicBool>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Proxy {
    /// Passes on to `upstream` on loopback what `decide` lets through.
    pub fn start(upstream: u16, decide: impl Fn(&Request) -> Fault + Send + Sync + 'static) -> Proxy {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let (count, stop) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicBool::new(false)));
        let (ended, decide): (_, Arc<Decide>) = (stop.clone(), Arc::new(decide));
        let thread = std::thread::spawn(move || {
            for client in listener.incoming() {
                if ended.load(Ordering::Relaxed) {
                    return;
                }
                let (count, decide) = (count.clone(), decide.clone());
                std::thread::spawn(move || {
                    let _ = client.and_then(|c| serve(c, upstream, &count, &*decide));
                });
            }
        });
        Proxy { port, stop, thread: Some(thread) }
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let _ = TcpStream::connect(("127.0.0.1", self.port));
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// One request; every connection is closed after it.
fn serve(mut client: TcpStream, upstream: u16, count: &AtomicUsize, decide: &Decide) -> std::io::Result<()> {
    client.set_read_timeout(Some(Duration::from_secs(60)))?;
    let (mut head, mut byte) = (Vec::new(), [0]);
    while !head.ends_with(b"\r\n\r\n") {
        if client.read(&mut byte)? == 0 {
            return Ok(());
        }
        head.push(byte[0]);
    }
    let text = String::from_utf8_lossy(&head).into_owned();
    let mut lines = text.lines();
    let method = lines.next().and_then(|l| l.split(' ').next()).unwrap_or_default().to_string();
    let length = lines.filter_map(|l| l.split_once(':')).find(|(k, _)| k.eq_ignore_ascii_case("content-length"));
    let length = length.and_then(|(_, v)| v.trim().parse().ok()).unwrap_or(0);
    let number = count.fetch_add(1, Ordering::SeqCst) + 1;
    let fault = decide(&Request { number, method, length });
    let mut body = vec![0; if matches!(fault, Fault::CutRequest) { length / 2 } else { length }];
    client.read_exact(&mut body)?;
    match fault {
        Fault::Status(status) => {
            let answer = format!("HTTP/1.1 {status} Fault\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
            client.write_all(answer.as_bytes())?;
            return client.shutdown(Shutdown::Both);
        }
        Fault::CutRequest => {
            // The server sees a body that ends too soon.
            let mut server = TcpStream::connect(("127.0.0.1", upstream))?;
            server.write_all(&head)?;
            server.write_all(&body)?;
            server.shutdown(Shutdown::Both)?;
            return client.shutdown(Shutdown::Both);
        }
        Fault::Slow(pause) => std::thread::sleep(pause),
        Fault::None | Fault::CutAnswer => {}
    }
    let mut server = TcpStream::connect(("127.0.0.1", upstream))?;
    let end = text.find("\r\n").unwrap_or(0) + 2;
    server.write_all(&head[..end])?;
    server.write_all(b"Connection: close\r\n")?;
    server.write_all(&head[end..])?;
    server.write_all(&body)?;
    if matches!(fault, Fault::CutAnswer) {
        server.read_to_end(&mut Vec::new())?;
        return client.shutdown(Shutdown::Both);
    }
    std::io::copy(&mut server, &mut client)?;
    client.shutdown(Shutdown::Both)
}
