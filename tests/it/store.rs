//! The object store tier against a real S3 server on loopback, through a proxy that makes faults, and on a local path.

mod proxy;
mod server;

use crate::support::{herd, text};
use crate::train::Run;
use herd::error::Exit;
use proxy::{Fault, Proxy};
use serde_json::{json, Value};
use server::{credentials, Server, SECRET};
use std::collections::BTreeMap;
use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// A run directory with one checkpoint of step 0: 21 MB in one file, so three parts.
fn imported(dir: &Path) -> PathBuf {
    let hf = dir.join("hf");
    fs::create_dir(&hf).unwrap();
    let config = json!({
        "model_type": "llama", "vocab_size": 10000, "hidden_size": 512, "intermediate_size": 32, "num_hidden_layers": 1,
        "num_attention_heads": 2, "num_key_value_heads": 2, "tie_word_embeddings": true, "head_dim": 8
    });
    fs::write(hf.join("config.json"), config.to_string()).unwrap();
    let model = herd::checkpoint::hf::config::parse(&config).unwrap().model;
    let tensors: BTreeMap<String, (Vec<usize>, Vec<u8>)> = herd::layout::units(&model)
        .into_iter()
        .flat_map(|(_, p)| p)
        .map(|(name, shape)| {
            let n: usize = shape.iter().product();
            (name, (shape, (0..n as u32).flat_map(|i| (i as f32 * 1.25e-4).sin().to_le_bytes()).collect()))
        })
        .collect();
    let views = tensors.iter().map(|(name, (shape, bytes))| {
        (name, safetensors::tensor::TensorView::new(safetensors::Dtype::F32, shape.clone(), bytes).unwrap())
    });
    safetensors::serialize_to_file(views, None, &hf.join("model.safetensors")).unwrap();
    let run = dir.join("run");
    good(herd().args(["checkpoint", "import"]).arg(&hf).arg(&run));
    run
}

fn good(c: &mut Command) -> String {
    let out = c.output().unwrap();
    assert!(out.status.success(), "{c:?}: {}", text(&out));
    String::from_utf8(out.stdout).unwrap()
}

/// `herd checkpoint …` with credentials for the server at `port`.
fn command(port: u16, args: &[&str]) -> Command {
    let mut c = herd();
    c.arg("checkpoint").args(args);
    credentials(&mut c, port);
    c
}

fn json_of(port: u16, args: &[&str]) -> Value {
    serde_json::from_str(&good(command(port, args).arg("--json"))).unwrap()
}

fn fails(c: &mut Command, exit: Exit, words: &str) -> Output {
    let out = c.output().unwrap();
    assert_eq!(out.status.code(), Some(exit.code()), "{c:?}: {}", text(&out));
    assert!(text(&out).contains(words), "{c:?} does not say {words}: {}", text(&out));
    assert!(!text(&out).contains(SECRET), "{}", text(&out));
    out
}

fn names(dir: &Path) -> Vec<String> {
    let listed = fs::read_dir(dir).map(|d| d.map(|e| e.unwrap().file_name().into_string().unwrap()).collect());
    let mut all: Vec<String> = listed.unwrap_or_default();
    all.sort();
    all
}

fn s(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[test]
fn a_round_trip_through_s3_and_every_fault() {
    let server = Server::start();
    let dir = tempfile::tempdir().unwrap();
    let run = imported(dir.path());
    let url = "s3://herd/a/b";
    commands_work(&server, dir.path(), &run, url);
    wrong_settings_are_told(&server, &run);
    faults_are_lived_through(&server, dir.path(), &run);
}

fn commands_work(server: &Server, dir: &Path, run: &Path, url: &str) {
    let port = server.port();
    assert_eq!(json_of(port, &["list", url]), json!([]));
    let up = json_of(port, &["upload", s(run), url]);
    assert_eq!(up[0]["sent"], up[0]["bytes"]);
    let again = json_of(port, &["upload", s(run), url]);
    assert_eq!(again[0]["sent"], 0, "what is whole there is not sent again");
    let listed = json_of(port, &["list", url]);
    assert_eq!((&listed[0]["step"], &listed[0]["valid"]), (&json!(0), &json!(true)));
    let shown = json_of(port, &["show", &format!("{url}/step-00000000")]);
    assert_eq!(shown["meta"]["model"]["hidden_size"], 512);
    assert_eq!(json_of(port, &["verify", url])[0]["whole"], true);
    let copy = dir.join("copy");
    let down = json_of(port, &["download", url, s(&copy)]);
    assert_eq!(down["step"], 0);
    good(&mut command(port, &["diff", s(run), s(&copy), "--meta"]));
    for name in names(&run.join("checkpoints/step-00000000")) {
        let bytes = |run: &Path| fs::read(run.join("checkpoints/step-00000000").join(&name)).unwrap();
        assert!(bytes(run) == bytes(&copy), "{name}");
    }
    fails(&mut command(port, &["download", url, s(&copy)]), Exit::Usage, "is there already");
    good(&mut command(port, &["download", url, s(&copy), "--replace"]));
    fails(&mut command(port, &["download", url, s(&copy), "--step", "7"]), Exit::Checkpoint, "holds no step 7");
    assert_eq!(names(&copy.join("checkpoints")), ["step-00000000"]);
    assert!(good(&mut command(port, &["prune", url, "--keep", "1"])).contains("nothing to remove"));
    // A file that is gone from the store.
    let files = server.filer("GET", "/buckets/herd/a/b/step-00000000/?pretty=y");
    let data = shown["files"][0]["name"].as_str().unwrap();
    let folder =
        files.split("\"FullPath\":").skip(1).filter_map(|p| p.split('"').nth(1)).find(|p| !p.ends_with(".json"));
    server.filer("DELETE", &format!("{}/{data}", folder.unwrap()));
    fails(&mut command(port, &["verify", url]), Exit::Checkpoint, "is missing");
    fails(&mut command(port, &["download", url, s(&dir.join("never"))]), Exit::Checkpoint, "is missing");
    assert_eq!(names(&dir.join("never/checkpoints")), [""; 0]);
    good(&mut command(port, &["upload", s(run), url]));
    good(&mut command(port, &["verify", url]));
}

fn wrong_settings_are_told(server: &Server, run: &Path) {
    let port = server.port();
    let url = "s3://herd/a/b";
    fails(&mut command(port, &["upload", s(run), "s3://absent/x"]), Exit::Store, "NoSuchBucket");
    fails(command(port, &["list", url]).env("AWS_SECRET_ACCESS_KEY", "another-secret"), Exit::Store, "credentials");
    fails(&mut command(port, &["list", "s3://KEY:hush@herd/x"]), Exit::Usage, "a user, a password");
    fails(&mut command(port, &["list", "ftp://herd/x"]), Exit::Usage, "\"ftp\" is not known");
    // The usual file instead of the environment.
    let home = tempfile::tempdir().unwrap();
    fs::create_dir(home.path().join(".aws")).unwrap();
    let keys = format!("[lab]\naws_access_key_id = {}\naws_secret_access_key = {SECRET}\n", server::KEY);
    fs::write(home.path().join(".aws/credentials"), keys).unwrap();
    let mut c = command(port, &["list", url]);
    c.env_remove("AWS_ACCESS_KEY_ID")
        .env_remove("AWS_SECRET_ACCESS_KEY")
        .env("HOME", home.path())
        .env("AWS_PROFILE", "lab");
    assert!(good(&mut c).contains("step-00000000"));
    fails(c.env("AWS_PROFILE", "other"), Exit::Store, "AWS_PROFILE is other");
}

/// Each fault in turn at the first requests, then at every third: nothing is lost.
fn faults_are_lived_through(server: &Server, dir: &Path, run: &Path) {
    type Make = fn() -> Fault;
    let faults: [(&str, Make); 5] = [
        ("500", || Fault::Status(500)),
        ("503", || Fault::Status(503)),
        ("cut-request", || Fault::CutRequest),
        ("cut-answer", || Fault::CutAnswer),
        ("slow", || Fault::Slow(Duration::from_millis(700))),
    ];
    for (name, make) in faults {
        let proxy = Proxy::start(server.port(), move |r| if r.number % 3 == 1 { make() } else { Fault::None });
        let url = format!("s3://herd/faults/{name}");
        good(&mut command(proxy.port, &["upload", s(run), &url]));
        let copy = dir.join(format!("copy-{name}"));
        good(&mut command(proxy.port, &["download", &url, s(&copy)]));
        good(&mut command(server.port(), &["verify", &url]));
        good(&mut command(server.port(), &["diff", s(run), s(&copy)]));
    }
    // A server that never recovers is given up, in bounded time.
    let dead = Proxy::start(server.port(), |_| Fault::Status(503));
    let began = Instant::now();
    fails(&mut command(dead.port, &["upload", s(run), "s3://herd/dead"]), Exit::Store, "503");
    assert!(began.elapsed() < Duration::from_secs(60));
}

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

/// Events of a run of one kind.
fn events(run: &Path, kind: &str) -> Vec<Value> {
    let all = fs::read_to_string(run.join("events.jsonl")).unwrap();
    all.lines().map(|l| serde_json::from_str::<Value>(l).unwrap()).filter(|e| e["kind"] == kind).collect()
}

fn losses(run: &Path) -> Vec<f64> {
    let all = fs::read_to_string(run.join("metrics.jsonl")).unwrap();
    all.lines().filter_map(|l| serde_json::from_str::<Value>(l).unwrap()["loss"].as_f64()).collect()
}

/// Every file below `dir`.
fn files(dir: &Path) -> Vec<PathBuf> {
    fs::read_dir(dir)
        .unwrap()
        .map(|e| e.unwrap().path())
        .flat_map(|p| if p.is_dir() { files(&p) } else { vec![p] })
        .collect()
}

#[test]
fn a_run_uploads_behind_training_and_comes_back_from_the_store_alone() {
    let server = Server::start();
    let run = Run::new();
    let plain = run.train(2, &[&format!("run_dir={}", run.path("plain").display())]);
    assert!(plain.status.success(), "{}", text(&plain));

    // Every other request is refused for the first two seconds: training does not care.
    let began = Instant::now();
    let proxy =
        Proxy::start(server.port(), move |r| match began.elapsed() < Duration::from_secs(2) && r.number % 2 == 0 {
            true => Fault::Status(503),
            false => Fault::None,
        });
    let store = ["checkpoint.store.url=s3://herd/run", "checkpoint.keep=2", "checkpoint.store.keep=2"];
    let mut c = run.command(2, &[&store[..], &["train.stop_at=12"]].concat());
    let out = credentials(&mut c, proxy.port).env("HERD_LOG", "trace").output().unwrap();
    assert_eq!(out.status.code(), Some(Exit::Requeue.code()), "{}", text(&out));
    let out_two = credentials(&mut run.command(2, &store), proxy.port).env("HERD_LOG", "trace").output().unwrap();
    assert!(out_two.status.success(), "{}", text(&out_two));
    let dir = run.path("run");
    let uploaded = events(&dir, "upload");
    assert_eq!(uploaded.last().unwrap()["step"], 20, "{uploaded:?}");
    // Those in between may have been overtaken, and that is said.
    let overtaken = events(&dir, "upload_skipped").len() + events(&dir, "upload_pending").len();
    assert!(uploaded.len() + overtaken >= 5, "{uploaded:?}");
    let remote = json_of(server.port(), &["list", "s3://herd/run"]);
    assert!(remote.as_array().unwrap().len() <= 2 && remote[0]["step"] == 20, "{remote}");
    assert_eq!(losses(&dir), losses(&run.path("plain")), "uploading changes nothing");

    // No credential in any log, event or file of the run.
    for seen in [text(&out), text(&out_two)] {
        assert!(!seen.contains(SECRET));
    }
    for file in files(&dir) {
        let bytes = fs::read(&file).unwrap();
        assert!(!bytes.windows(SECRET.len()).any(|w| w == SECRET.as_bytes()), "{}", file.display());
    }

    // The run directory is lost.
    let other = format!("run_dir={}", run.path("other").display());
    let again = [&store[..], &["train.steps=20", &other]].concat();
    let out = credentials(&mut run.command(2, &again), server.port()).output().unwrap();
    assert!(out.status.success(), "{}", text(&out));
    let there = run.path("other");
    assert_eq!(events(&there, "fetched")[0]["step"], 20);
    assert_eq!(events(&there, "resume")[0]["step"], 20);
    let step = "checkpoints/step-00000020";
    good(herd().args(["checkpoint", "diff"]).arg(dir.join(step)).arg(there.join(step)));

    // A store that does not answer: an error where nothing is here, an event where something is.
    let mut c = run.command(0, &[&store[..], &[&format!("run_dir={}", run.path("third").display())]].concat());
    let out = credentials(&mut c, 1).output().unwrap();
    assert_eq!(out.status.code(), Some(Exit::Store.code()), "{}", text(&out));
    let mut c = run.command(0, &[&store[..], &["checkpoint.store.attempts=1", &other]].concat());
    let out = credentials(&mut c, 1).output().unwrap();
    assert!(out.status.success(), "{}", text(&out));
    assert_eq!(events(&there, "store_passed_over").len(), 1);
}

#[test]
fn what_is_not_safe_in_the_store_stays_here() {
    let run = Run::new();
    // Nobody listens on port 1.
    let set = ["checkpoint.store.url=s3://herd/x", "checkpoint.keep=1", "checkpoint.store.attempts=1"];
    let fresh = ["train.stop_at=4"];
    // The store is down from the start, and nothing is here: refuse, do not start afresh.
    let out = credentials(&mut run.command(0, &[&set[..], &fresh].concat()), 1).output().unwrap();
    assert_eq!(out.status.code(), Some(Exit::Store.code()), "{}", text(&out));
    let out = run.train(0, &["train.stop_at=4"]);
    assert_eq!(out.status.code(), Some(Exit::Requeue.code()));
    let out =
        credentials(&mut run.command(0, &[&set[..], &["checkpoint.store.drain_s=20"]].concat()), 1).output().unwrap();
    assert!(out.status.success(), "{}", text(&out));
    let dir = run.path("run");
    assert!(!events(&dir, "upload_failed").is_empty());
    let all: Vec<String> = [4, 8, 12, 16, 20].iter().map(|n| format!("step-{n:08}")).collect();
    assert_eq!(names(&dir.join("checkpoints")), all, "none is safe there, so none goes here");
    let pruned = || good(herd().args(["checkpoint", "prune"]).arg(&dir).args(["--keep", "1"]));
    assert!(pruned().contains("nothing to remove"));
    // The newest is in the store now: what is older may go.
    let place = run.path("store");
    let url = format!("file://{}", place.display());
    let ledger = json!({ "url": url, "every": 0, "verified": [] });
    fs::write(dir.join("uploads.json"), ledger.to_string()).unwrap();
    good(herd().args(["checkpoint", "upload"]).arg(&dir).arg(&url));
    assert_eq!(pruned().matches("removed").count(), 4);
    assert_eq!(names(&dir.join("checkpoints")), ["step-00000020"]);
}

#[test]
fn a_damaged_copy_is_passed_over_for_an_older_one() {
    let run = Run::new();
    let place = run.path("store");
    let url = format!("file://{}", place.display());
    let set =
        [format!("checkpoint.store.url={url}"), "checkpoint.store.every=8".into(), "checkpoint.store.keep=0".into()];
    let set: Vec<&str> = set.iter().map(String::as_str).collect();
    let out = run.train(0, &set);
    assert!(out.status.success(), "{}", text(&out));
    // Multiples of 8, and the last.
    let there: Vec<String> = names(&place);
    assert!(there.contains(&"step-00000020".to_string()) && !there.contains(&"step-00000012".to_string()), "{there:?}");
    good(herd().args(["checkpoint", "upload", "--all"]).arg(run.path("run")).arg(&url));
    assert_eq!(names(&place).len(), 5);
    let damage = |step: &str, how: &dyn Fn(&Path)| {
        let data = files(&place.join(step)).into_iter().find(|p| p.extension().is_some_and(|e| e == "h5")).unwrap();
        how(&data);
    };
    damage("step-00000020", &|p| {
        let mut bytes = fs::read(p).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        fs::write(p, bytes).unwrap();
    });
    damage("step-00000016", &|p| fs::write(p, &fs::read(p).unwrap()[..1000]).unwrap());
    damage("step-00000012", &|p| fs::remove_file(p).unwrap());
    let manifest = place.join("step-00000008/manifest.json");
    fs::write(&manifest, fs::read_to_string(&manifest).unwrap().replacen("\"seed\":7", "\"seed\":8", 1)).unwrap();
    let out = herd().args(["checkpoint", "verify", &url]).output().unwrap();
    assert_eq!((out.status.code(), text(&out).matches("DAMAGED").count()), (Some(20), 4), "{}", text(&out));
    let fresh = run.path("fresh");
    let fresh_dir = format!("run_dir={}", fresh.display());
    let all = [&set[..], &[&fresh_dir, "train.stop_at=4"]].concat();
    let out = run.train(2, &all);
    assert_eq!(out.status.code(), Some(Exit::Requeue.code()), "{}", text(&out));
    let rejected: Vec<u64> = events(&fresh, "remote_rejected").iter().map(|e| e["step"].as_u64().unwrap()).collect();
    assert_eq!(rejected, [20, 16, 12, 8]);
    assert_eq!(events(&fresh, "fetched")[0]["step"], 4);
    assert_eq!(names(&fresh.join("checkpoints")), ["step-00000004"]);
    // An upload replaces what is damaged, and only that.
    let up = good(herd().args(["checkpoint", "upload", "--all", "--json"]).arg(run.path("run")).arg(&url));
    let up: Value = serde_json::from_str(&up).unwrap();
    let sent: Vec<bool> = up.as_array().unwrap().iter().map(|u| u["sent"].as_u64() > Some(0)).collect();
    assert_eq!(sent, [false, true, true, true, true]);
    good(herd().args(["checkpoint", "verify", &url]));
    good(herd().args(["checkpoint", "prune", &url, "--keep", "2"]));
    assert_eq!(names(&place).iter().filter(|n| place.join(n).join("manifest.json").exists()).count(), 2);
}

#[test]
fn downloads_that_do_not_fit_leave_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let run = imported(dir.path());
    let url = format!("file://{}", dir.path().join("store").display());
    good(herd().args(["checkpoint", "upload"]).arg(&run).arg(&url));
    let read_only = Path::new("/proc/herd-test");
    let out = herd().args(["checkpoint", "download", &url]).arg(read_only).output().unwrap();
    assert_eq!(out.status.code(), Some(Exit::Storage.code()), "{}", text(&out));
    let Some(disk) = crate::checkpoint::SmallDisk::new(8 << 20) else { return };
    let small = disk.path().join("run");
    fails(herd().args(["checkpoint", "download", &url]).arg(&small), Exit::Storage, "free (hint: free space");
    assert_eq!(names(&small.join("checkpoints")), [""; 0]);
    let meta = disk.path().join("other");
    fails(herd().args(["checkpoint", "import"]).arg(dir.path().join("hf")).arg(&meta), Exit::Storage, "no space left");
    assert_eq!(names(&meta.join("checkpoints")), [""; 0]);
}

#[test]
fn exports_of_a_run_load_and_old_ones_go() {
    let run = Run::new();
    let set = ["checkpoint.export_every=8", "checkpoint.export_keep=1", "checkpoint.every=4"];
    let out = run.train(2, &set);
    assert!(out.status.success(), "{}", text(&out));
    let dir = run.path("run");
    let steps: Vec<u64> = events(&dir, "export").iter().map(|e| e["step"].as_u64().unwrap()).collect();
    let skipped = events(&dir, "export_skipped").len();
    assert!(steps.last() == Some(&16) && steps.len() + skipped == 2, "{steps:?}");
    assert_eq!(names(&dir.join("exports")), ["step-00000016"]);
    let export = dir.join("exports/step-00000016");
    good(herd().args(["checkpoint", "diff"]).arg(dir.join("checkpoints/step-00000016")).arg(&export));
    let there = names(&export);
    for file in ["config.json", "generation_config.json", "model.safetensors", "tokenizer.json"] {
        assert!(there.iter().any(|n| n == file), "{there:?}");
    }
    let wrong = run.train(0, &["checkpoint.export_every=6"]);
    assert_eq!(wrong.status.code(), Some(Exit::Config.code()));
    assert!(text(&wrong).contains("checkpoint.export_every"), "{}", text(&wrong));
}
