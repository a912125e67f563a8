//! How far a long command is: plain lines where there is no terminal, a bar on one, and nothing of either on standard output.

use crate::store::imported;
use crate::support::{herd, said, text};
use serde_json::Value;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// A run with a checkpoint of three parts, and a place for uploads.
fn run_and_store(dir: &Path) -> (PathBuf, String) {
    (imported(dir), format!("file://{}", dir.join("store").display()))
}

#[test]
fn a_slow_upload_says_how_far_it_is_and_a_quick_command_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let (run, url) = run_and_store(dir.path());
    // 8 MiB at once, 8 after four seconds, the rest after eight.
    let out = herd().args(["checkpoint", "upload", "--bandwidth", "2"]).arg(&run).arg(&url).output().unwrap();
    assert!(out.status.success(), "{}", text(&out));
    let (out, err) = (String::from_utf8(out.stdout).unwrap(), String::from_utf8(out.stderr).unwrap());
    assert!(out.starts_with("uploaded file://") && out.lines().count() == 1, "{out}");
    // one at the fifth of eight seconds, and more where the machine is slower than the limit
    assert!(err.lines().count() >= 1, "nothing was said in eight seconds");
    for line in err.lines() {
        let (done, rest) = line.split_once(" of 20.8 MB, ").unwrap_or_else(|| panic!("{line}"));
        assert!(done.starts_with("upload step-00000000: ") && rest.contains("B/s, "), "{line}");
    }

    let copy = dir.path().join("copy");
    let (run, copy) = (run.to_str().unwrap(), copy.to_str().unwrap());
    for args in [&["verify", run][..], &["verify", &url], &["download", &url, copy], &["diff", run, copy]] {
        let began = Instant::now();
        let out = herd().arg("checkpoint").args(args).arg("--json").output().unwrap();
        let quick = began.elapsed() < Duration::from_secs(4);
        assert!(out.status.success(), "{args:?}: {}", text(&out));
        let told = String::from_utf8_lossy(&out.stderr);
        assert!(!quick || !told.lines().any(|l| l.contains(" of ") && l.contains(" MB")), "{args:?}: {told}");
        serde_json::from_slice::<Value>(&out.stdout).unwrap_or_else(|e| panic!("{args:?}: {e}"));
    }
}

#[test]
fn a_stream_of_unknown_length_says_how_much_was_read() {
    let dir = tempfile::tempdir().unwrap();
    let mut child = herd()
        .args(["data", "tokenize", "-t", "bytes", "-o", "words", "--split-documents", "line", "-"])
        .current_dir(dir.path())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let mut told = BufReader::new(child.stderr.take().unwrap()).lines();
    stdin.write_all("an owl\n".repeat(300_000).as_bytes()).unwrap();
    let line = told.next().expect("a line after five seconds").unwrap();
    stdin.write_all(b"an elk\n").unwrap();
    drop(stdin);
    let out = child.wait_with_output().unwrap();
    assert!(out.status.success(), "{}", text(&out));
    assert!(line.starts_with("tokenize: ") && line.contains(" MB, ") && line.contains(" tokens"), "{line}");
    assert!(String::from_utf8_lossy(&out.stdout).contains("300,001 documents"));
}

/// Under `script`, which gives a command a terminal; this one has one stream for all.
#[test]
fn on_a_terminal_there_is_a_bar_that_goes_away() {
    let dir = tempfile::tempdir().unwrap();
    let (run, url) = run_and_store(dir.path());
    let herd = env!("CARGO_BIN_EXE_herd");
    let line = format!("{herd} checkpoint upload --bandwidth 6 {} {url}", run.display());
    let shown = said(Command::new("script").args(["-qec", &line, "/dev/null"]).env("TERM", "xterm").current_dir(&dir));
    let (bars, end) = shown.rsplit_once("uploaded file://").expect("the result");
    assert!(bars.contains('█') && bars.contains("upload step-00000000: "), "{shown:?}");
    let standing = bars.rsplit("\u{1b}[2K").next();
    assert!(standing == Some("") && !end.contains('█'), "the bar is wiped before the result: {shown:?}");
}
