//! The checkpoint commands on URLs: what works, what is refused, what a faulty network does to them.

use super::proxy::{Fault, Proxy};
use super::server::{self, Server, SECRET};
use super::{command, fails, good, imported, json_of, names, s};
use crate::support::{herd, text};
use herd::error::Exit;
use serde_json::json;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

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
