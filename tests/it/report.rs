//! `herd report` on real runs: the page in a real browser, the live page over real HTTP, the files for other programs.

use super::support::{herd, python, text};
use super::train::{lines, Run};
use serde_json::Value;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Stdio;

/// A run on two ranks that was stopped and went on, with half a line in its metrics.
fn trained() -> Run {
    let run = Run::new();
    assert_eq!(run.train(2, &["train.stop_at=7"]).status.code(), Some(75));
    let out = run.train(2, &[]);
    assert!(out.status.success(), "{}", text(&out));
    fs::OpenOptions::new()
        .append(true)
        .open(run.path("run/metrics.jsonl"))
        .unwrap()
        .write_all(b"{\"step\":21,\n")
        .unwrap();
    run
}

/// What the browser says about a page; None where there is none.
fn browsed(page: &Path, more: &[&str]) -> Option<Value> {
    let out = python().arg("tests/page/chromium.py").arg(page).args(more).output().unwrap();
    if out.status.code() == Some(3) {
        eprintln!("SKIPPED: {}", text(&out).trim());
        return None;
    }
    assert!(out.status.success(), "{}", text(&out));
    Some(serde_json::from_slice(&out.stdout).unwrap())
}

/// The answer to a GET: status and everything else.
fn get(address: &str, path: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(address).unwrap();
    write!(stream, "GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    (answer[9..12].parse().unwrap(), answer)
}

#[test]
fn a_run_becomes_a_page_that_a_browser_shows() {
    let run = trained();
    let dir = run.path("run");
    let out = herd().arg("report").arg(&dir).output().unwrap();
    assert!(out.status.success(), "{}", text(&out));
    assert!(text(&out).contains("metrics.jsonl: 1 of 21 lines"), "{}", text(&out));
    let page = dir.join("report.html");

    // what the ranks say of each other, and the file for Prometheus
    let steps = lines_but_the_last(&dir);
    for s in &steps {
        let of = |key: &str| s[key].as_f64().unwrap();
        let (min, mean, max) = (of("rank_work_min_s"), of("rank_work_mean_s"), of("rank_work_max_s"));
        assert!(0.0 < min && min <= mean + 1e-6 && mean <= max + 2e-6, "{s}");
        assert!(s["slowest_rank"].as_u64().unwrap() < 2);
    }
    let prom = fs::read_to_string(dir.join("metrics.prom")).unwrap();
    assert!(prom.contains("herd_step{run=\"tiny\"} 20\n") && prom.contains("herd_validation_loss{"), "{prom}");

    let script =
        "JSON.stringify([document.querySelectorAll('canvas').length, document.getElementById('notes').textContent, \
                  document.getElementById('overview').textContent, plots[0].u.data[1].filter(x => x !== null).length])";
    for (size, dark) in [(["--width", "1360"], false), (["--width", "390"], true)] {
        let theme: &[&str] = if dark { &["--dark"] } else { &[] };
        let Some(v) = browsed(&page, &[&size[..], theme, &["--run", script]].concat()) else { return };
        assert_eq!((&v["errors"], &v["overflow"]), (&serde_json::json!([]), &serde_json::json!(0)), "{v}");
        let found: Value = serde_json::from_str(v["value"].as_str().unwrap()).unwrap();
        assert!(found[0].as_u64().unwrap() >= 8, "{found}");
        assert!(found[1].as_str().unwrap().contains("metrics.jsonl: 1 of 21 lines"), "{found}");
        assert!(found[2].as_str().unwrap().contains("finished"), "{found}");
        assert_eq!(found[3], 20, "all steps of the loss");
    }
    // every control, several runs, and names that are markup
    let second = run.path("second");
    fs::create_dir(&second).unwrap();
    for file in ["metrics.jsonl", "events.jsonl"] {
        fs::copy(dir.join(file), second.join(file)).unwrap();
    }
    fs::write(second.join("config.yaml"), "name: \"<img src=x onerror='window.broken=1'></script>\"\n").unwrap();
    let both = run.path("both.html");
    let out = herd().arg("report").args([&dir, &second]).arg("-o").arg(&both).output().unwrap();
    assert!(out.status.success(), "{}", text(&out));
    let script = "for (const id of ['log', 'smooth', 'band', 'theme', 'reset']) document.getElementById(id).click(); \
                  for (const v of ['tokens', 'hours', 'step']) { document.getElementById('axis').value = v; document.getElementById('axis').onchange(); } \
                  JSON.stringify([window.broken === undefined, document.querySelectorAll('img').length, document.querySelectorAll('canvas').length])";
    let v = browsed(&both, &["--run", script]).unwrap();
    assert_eq!(v["errors"], serde_json::json!([]), "{v}");
    let found: Value = serde_json::from_str(v["value"].as_str().unwrap()).unwrap();
    assert!(found[0] == true && found[1] == 0 && found[2].as_u64().unwrap() >= 8, "{found}");
}

fn lines_but_the_last(dir: &Path) -> Vec<Value> {
    let whole = fs::read_to_string(dir.join("metrics.jsonl")).unwrap();
    whole.lines().filter_map(|l| serde_json::from_str(l).ok()).collect()
}

#[test]
fn the_live_page_is_for_whoever_has_the_token() {
    let run = Run::new();
    let out = run.train(0, &["train.steps=6"]);
    assert!(out.status.success(), "{}", text(&out));
    let dir = run.path("run");
    let mut server =
        herd().args(["report", "--watch", "--listen", "127.0.0.1:0"]).arg(&dir).stdout(Stdio::piped()).spawn().unwrap();
    let mut url = String::new();
    BufReader::new(server.stdout.take().unwrap()).read_line(&mut url).unwrap();
    let rest = url.trim().strip_prefix("http://").unwrap();
    let (address, path) = rest.split_once('/').unwrap();
    let file = dir.join("report.url");
    assert_eq!(fs::read_to_string(&file).unwrap(), url);
    assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);

    let (status, answer) = get(address, &format!("/{path}data.json"));
    assert!(status == 200 && answer.contains("\"step\":6"), "{answer}");
    for wrong in
        ["/", "/data.json", "/0123456789abcdef0123456789abcdef/", "/0123456789abcdef0123456789abcdef/data.json"]
    {
        let (status, answer) = get(address, wrong);
        assert!(status == 404 && !answer.contains("tiny"), "{wrong}: {answer}");
    }
    // the page asks again by itself, and shows what has come
    let more = format!("{}\n", serde_json::json!({ "step": 7, "loss": 1.25, "tokens_per_s": 5.0, "step_s": 1.0 }));
    let script = "new Promise(done => { const look = () => data.runs[0].status.step === 7 ? done(document.getElementById('live').textContent) \
                  : setTimeout(look, 50); look(); })";
    fs::OpenOptions::new().append(true).open(dir.join("metrics.jsonl")).unwrap().write_all(more.as_bytes()).unwrap();
    if let Some(v) = browsed(Path::new(url.trim()), &["--run", script]) {
        assert_eq!((&v["errors"], &v["value"]), (&serde_json::json!([]), &serde_json::json!("live")), "{v}");
    }
    // SAFETY: signals one process this test started.
    assert_eq!(unsafe { libc::kill(server.id() as i32, libc::SIGTERM) }, 0);
    assert!(server.wait().unwrap().success());
    assert!(!file.exists());
    assert_eq!(lines(&dir, "metrics.jsonl").len(), 7);
}

#[test]
fn status_follows_a_run_to_its_end_in_plain_lines() {
    let run = Run::new();
    let set = ["train.steps=400", "validation.every=0", "checkpoint.every=0"];
    let mut child = run.command(0, &set).stderr(Stdio::null()).stdout(Stdio::null()).spawn().unwrap();
    super::train::wait_for_step(&run.path("run"), 2, &mut child);
    let out = herd().args(["status", "--watch", "--every", "1"]).arg(run.path("run")).output().unwrap();
    assert!(child.wait().unwrap().success());
    let said = text(&out);
    assert!(out.status.success() && !said.contains('\u{1b}'), "{said}");
    assert!(said.lines().count() >= 2, "{said}");
    let last = said.lines().last().unwrap();
    assert!(last.contains("finished: step 400 of 400 (100.0%)"), "{said}");
}

#[test]
fn what_is_no_run_or_has_no_place_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    for (args, code, words) in [
        (vec!["report"], 2, "no run directory"),
        (vec!["report", "--watch", "-o", "x.html"], 2, "cannot be used with"),
        (vec!["status", "--watch", "--json"], 2, "cannot be used with"),
    ] {
        let out = herd().args(&args).arg(dir.path()).output().unwrap();
        assert_eq!(out.status.code(), Some(code), "{}", text(&out));
        assert!(text(&out).contains(words), "{}", text(&out));
    }
    fs::write(dir.path().join("config.yaml"), "name: x\n").unwrap();
    let out = herd().arg("report").args([dir.path(), dir.path()]).output().unwrap();
    assert!(out.status.code() == Some(2) && text(&out).contains("-o compare.html"), "{}", text(&out));
    let out = herd().arg("report").arg(dir.path()).args(["-o", "/nosuch/x.html"]).output().unwrap();
    assert_eq!(out.status.code(), Some(21), "{}", text(&out));
}
