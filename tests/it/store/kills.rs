//! SIGKILL of the uploader, the downloader and the server, at every point in turn.

use super::proxy::{Fault, Proxy};
use super::server::Server;
use super::{command, good, imported, json_of, names, s};
use crate::crash::drive::record;
use crate::train::Run;
use serde_json::json;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::ExitStatus;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

#[test]
fn killed_at_every_request_the_store_holds_no_manifest_or_a_whole_checkpoint() {
    let server = Server::start();
    let dir = tempfile::tempdir().unwrap();
    let run = imported(dir.path());
    let mut points = 0;
    for moment in ["before", "after"] {
        for n in 1.. {
            let url = format!("s3://herd/kill/{moment}-{n}");
            let (hit, status) = killed_at(server.port(), n, moment == "before", &["upload", s(&run), &url]);
            if !hit {
                assert!(status.success());
                break;
            }
            points += 1;
            record(&[json!({ "case": "upload to S3", "fault": moment, "point": n, "ok": true })]);
            let port = server.port();
            if !good(&mut command(port, &["list", &url])).contains("no checkpoints") {
                good(&mut command(port, &["verify", &url]));
            }
            good(&mut command(port, &["upload", s(&run), &url]));
            if n % 4 == 0 {
                good(&mut command(port, &["verify", &url]));
            }
            assert!(status.signal() == Some(libc::SIGKILL) || moment == "after", "{status}");
        }
    }
    assert!(points >= 16, "{points} points");
    eprintln!("{points} points of an upload");
    killed_while_downloading(&server, dir.path(), &run);
}

/// Runs a command that is killed at its `n`-th request, before the server sees it or when it has answered. Whether it came so
/// far, and how it ended.
fn killed_at(upstream: u16, n: usize, before: bool, args: &[&str]) -> (bool, ExitStatus) {
    let pid = Arc::new(AtomicU32::new(0));
    let (victim, killed) = (pid.clone(), Arc::new(AtomicUsize::new(0)));
    let hit = killed.clone();
    let proxy = Proxy::start(upstream, move |r| {
        if r.number == n {
            hit.store(1, Ordering::SeqCst);
        }
        match r.number == n {
            true if before => {
                kill(&victim);
                Fault::Status(500)
            }
            // The request reaches the server, its answer nobody.
            true => {
                let victim = victim.clone();
                std::thread::spawn(move || {
                    std::thread::sleep(Duration::from_millis(30));
                    kill(&victim)
                });
                Fault::CutAnswer
            }
            false => Fault::None,
        }
    });
    let mut child = command(proxy.port, args).spawn().unwrap();
    pid.store(child.id(), Ordering::SeqCst);
    let status = child.wait().unwrap();
    (killed.load(Ordering::SeqCst) == 1, status)
}

/// The newest stays whatever the point, and what is half removed is no checkpoint.
#[test]
fn killed_at_every_request_of_a_prune() {
    let server = Server::start();
    let run = Run::new();
    let set = ["train.stop_at=8", "checkpoint.background=false", "log.tensorboard=false"];
    assert_eq!(run.train(0, &set).status.code(), Some(75));
    let (port, run) = (server.port(), run.path("run"));
    let mut points = 0;
    for before in [true, false] {
        for n in 1.. {
            let url = format!("s3://herd/prune/{before}-{n}");
            good(&mut command(port, &["upload", "--all", s(&run), &url]));
            let (hit, status) = killed_at(port, n, before, &["prune", &url, "--keep", "1"]);
            if !hit {
                assert!(status.success());
                break;
            }
            points += 1;
            record(&[
                json!({ "case": "prune of S3", "fault": if before { "before" } else { "after" }, "point": n, "ok": true }),
            ]);
            assert_eq!(json_of(port, &["list", &url])[0]["step"], 8);
            good(&mut command(port, &["verify", &url]));
            good(&mut command(port, &["prune", &url, "--keep", "1"]));
            assert_eq!(json_of(port, &["list", &url]).as_array().unwrap().len(), 1);
        }
    }
    assert!(points >= 6, "{points} points");
}

fn kill(pid: &AtomicU32) {
    while pid.load(Ordering::SeqCst) == 0 {
        std::thread::sleep(Duration::from_millis(1));
    }
    // SAFETY: a child of this test that nobody has waited for yet, or one that is gone.
    unsafe { libc::kill(pid.load(Ordering::SeqCst) as i32, libc::SIGKILL) };
}

fn killed_while_downloading(server: &Server, dir: &Path, run: &Path) {
    let url = "s3://herd/kill/down";
    good(&mut command(server.port(), &["upload", s(run), url]));
    for n in 1.. {
        let copy = dir.join(format!("down-{n}"));
        let pid = Arc::new(AtomicU32::new(0));
        let (victim, hit) = (pid.clone(), Arc::new(AtomicUsize::new(0)));
        let seen = hit.clone();
        let proxy = Proxy::start(server.port(), move |r| {
            if r.number == n {
                seen.store(1, Ordering::SeqCst);
                kill(&victim);
            }
            Fault::None
        });
        let mut child = command(proxy.port, &["download", url, s(&copy)]).spawn().unwrap();
        pid.store(child.id(), Ordering::SeqCst);
        let status = child.wait().unwrap();
        if hit.load(Ordering::SeqCst) == 0 {
            assert!(status.success());
            break;
        }
        record(&[json!({ "case": "download from S3", "fault": "kill", "point": n, "ok": true })]);
        assert!(names(&copy.join("checkpoints")).iter().all(|n| n.contains(".tmp-")), "{n}");
        good(&mut command(server.port(), &["download", url, s(&copy)]));
        assert_eq!(names(&copy.join("checkpoints")), ["step-00000000"]);
    }
}

#[test]
fn a_server_killed_mid_upload_and_started_again_gets_the_rest() {
    let server = Arc::new(Mutex::new(Server::start()));
    let dir = tempfile::tempdir().unwrap();
    let run = imported(dir.path());
    let upstream = server.lock().unwrap().port();
    let victim = server.clone();
    let (parts, restarted) = (AtomicUsize::new(0), Arc::new(AtomicUsize::new(0)));
    let count = restarted.clone();
    let proxy = Proxy::start(upstream, move |r| {
        if r.method == "PUT" && r.length > 1 << 20 && parts.fetch_add(1, Ordering::SeqCst) == 1 {
            let (victim, count) = (victim.clone(), count.clone());
            std::thread::spawn(move || {
                let mut server = victim.lock().unwrap();
                server.kill();
                std::thread::sleep(Duration::from_secs(2));
                count.fetch_add(usize::from(server.up()), Ordering::SeqCst);
                // It dies with the thread that started it.
                drop(server);
                std::thread::park_timeout(Duration::from_secs(120));
            });
            std::thread::sleep(Duration::from_millis(50));
        }
        Fault::None
    });
    let url = "s3://herd/restarted";
    good(&mut command(proxy.port, &["upload", s(&run), url, "--attempts", "12"]));
    assert_eq!(restarted.load(Ordering::SeqCst), 1);
    good(&mut command(upstream, &["verify", url]));
    assert!(run.join("checkpoints/step-00000000/manifest.json").exists());
    server.lock().unwrap().kill();
}
