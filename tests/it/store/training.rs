//! Runs that upload behind training, lose their run directory, or find the store down; exports.

use super::proxy::{Fault, Proxy};
use super::server::{credentials, Server, SECRET};
use super::{events, files, good, json_of, losses, names};
use crate::support::{herd, text};
use crate::train::Run;
use herd::error::Exit;
use serde_json::{json, Value};
use std::fs;
use std::path::Path;
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// Saves between the steps: of a run as quick as these, background saves would leave some out.
const BETWEEN: &str = "checkpoint.background=false";

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
    let store = [BETWEEN, "checkpoint.store.url=s3://herd/run", "checkpoint.keep=2", "checkpoint.store.keep=2"];
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

/// The server dies in the middle of an upload and is away for seconds: training does not notice, and nothing leaves the run
/// directory before it, or a newer one, is verified there.
#[test]
fn a_server_that_dies_under_a_run() {
    let server = Arc::new(Mutex::new(Server::start()));
    let run = Run::new();
    let plain = run.losses(2, "plain", &[BETWEEN]);
    let (victim, died) = (server.clone(), Arc::new(AtomicBool::new(false)));
    let once = died.clone();
    let proxy = Proxy::start(server.lock().unwrap().port(), move |r| {
        if r.method == "PUT" && r.number > 4 && !once.swap(true, Ordering::SeqCst) {
            let mut server = victim.lock().unwrap();
            server.kill();
            let victim = victim.clone();
            std::thread::spawn(move || {
                std::thread::sleep(Duration::from_secs(2));
                assert!(victim.lock().unwrap().up());
                // It dies with the thread that started it.
                std::thread::park_timeout(Duration::from_secs(300));
            });
        }
        Fault::None
    });
    let store = [BETWEEN, "checkpoint.store.url=s3://herd/dies", "checkpoint.keep=1", "checkpoint.store.attempts=20"];
    let mut c = run.command(2, &[&store[..], &["checkpoint.store.drain_s=120"]].concat());
    let mut child = credentials(&mut c, proxy.port).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let (dir, mut looks) = (run.path("run"), 0);
    let status = loop {
        let saved = crate::crash::events(&dir, "checkpoint");
        let here = names(&dir.join("checkpoints"));
        let ledger = fs::read(dir.join("uploads.json")).ok().and_then(|b| serde_json::from_slice::<Value>(&b).ok());
        let newest = ledger.and_then(|l| l["verified"].as_array()?.iter().filter_map(Value::as_u64).max());
        for step in saved.iter().filter_map(|e| e["step"].as_u64()) {
            let safe = here.contains(&format!("step-{step:08}")) || newest >= Some(step);
            assert!(safe, "step {step} is neither here ({here:?}) nor safe in the store ({newest:?})");
            looks += 1;
        }
        if let Some(status) = child.try_wait().unwrap() {
            break status;
        }
        std::thread::sleep(Duration::from_millis(10));
    };
    assert!(status.success() && died.load(Ordering::SeqCst) && looks > 0, "{status}");
    assert_eq!(losses(&dir), plain);
    let port = server.lock().unwrap().port();
    assert_eq!(json_of(port, &["list", "s3://herd/dies"])[0]["step"], 20);
    good(&mut super::command(port, &["verify", "s3://herd/dies"]));
    server.lock().unwrap().kill();
}

#[test]
fn what_is_not_safe_in_the_store_stays_here() {
    let run = Run::new();
    // Nobody listens on port 1.
    let set = [BETWEEN, "checkpoint.store.url=s3://herd/x", "checkpoint.keep=1", "checkpoint.store.attempts=1"];
    let fresh = ["train.stop_at=4"];
    // The store is down from the start, and nothing is here: refuse, do not start afresh.
    let out = credentials(&mut run.command(0, &[&set[..], &fresh].concat()), 1).output().unwrap();
    assert_eq!(out.status.code(), Some(Exit::Store.code()), "{}", text(&out));
    let out = run.train(0, &[BETWEEN, "train.stop_at=4"]);
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
    let some = good(herd().args(["checkpoint", "prune"]).arg(&dir).args(["--keep", "1", "--keep-every", "8"]));
    assert_eq!(some.matches("removed").count(), 2, "{some}");
    assert_eq!(pruned().matches("removed").count(), 2);
    assert_eq!(names(&dir.join("checkpoints")), ["step-00000020"]);
}

#[test]
fn a_damaged_copy_is_passed_over_for_an_older_one() {
    let run = Run::new();
    let place = run.path("store");
    let url = format!("file://{}", place.display());
    let set =
        [format!("checkpoint.store.url={url}"), "checkpoint.store.every=8".into(), "checkpoint.store.keep=0".into()];
    let set: Vec<&str> = set.iter().map(String::as_str).chain([BETWEEN]).collect();
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
fn exports_of_a_run_load_and_old_ones_go() {
    let run = Run::new();
    let set = [BETWEEN, "checkpoint.export_every=8", "checkpoint.export_keep=1", "checkpoint.every=4"];
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
