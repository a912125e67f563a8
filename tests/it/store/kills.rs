//! SIGKILL of the uploader, the downloader and the server, at every point in turn.

use super::proxy::{Fault, Proxy};
use super::server::Server;
use super::{command, good, imported, names, s};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
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
            let pid = Arc::new(AtomicU32::new(0));
            let (victim, killed) = (pid.clone(), Arc::new(AtomicUsize::new(0)));
            let (hit, before) = (killed.clone(), moment == "before");
            let proxy = Proxy::start(server.port(), move |r| {
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
            let mut child = command(proxy.port, &["upload", s(&run), &url]).spawn().unwrap();
            pid.store(child.id(), Ordering::SeqCst);
            let status = child.wait().unwrap();
            if killed.load(Ordering::SeqCst) == 0 {
                assert!(status.success());
                break;
            }
            points += 1;
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
