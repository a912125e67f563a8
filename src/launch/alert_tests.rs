//! Alerts against a server on loopback and small programs.

use super::*;
use std::io::{BufRead, BufReader, Read};
use std::net::TcpListener;

fn about() -> Map<String, Value> {
    [("run".to_string(), json!("demo")), ("job".to_string(), json!(7))].into_iter().collect()
}

/// A server that answers one request with `status` and hands its body back.
fn server(status: &'static str) -> (String, std::thread::JoinHandle<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("http://{}/services/SECRET", listener.local_addr().unwrap());
    let thread = std::thread::spawn(move || {
        let mut stream = listener.accept().unwrap().0;
        let mut reader = BufReader::new(stream.try_clone().unwrap());
        let (mut length, mut line) = (0, String::new());
        while reader.read_line(&mut line).unwrap() > 2 {
            if let Some(n) = line.to_lowercase().strip_prefix("content-length:") {
                length = n.trim().parse().unwrap();
            }
            line.clear();
        }
        let mut body = vec![0; length];
        reader.read_exact(&mut body).unwrap();
        write!(stream, "HTTP/1.1 {status}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n").unwrap();
        String::from_utf8(body).unwrap()
    });
    (address, thread)
}

fn secret_file(address: &str) -> tempfile::NamedTempFile {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    writeln!(file, "{address}").unwrap();
    file
}

#[test]
fn a_webhook_gets_text_and_fields_once() {
    let (address, thread) = server("200 OK");
    let file = secret_file(&address);
    let config = AlertsSection { webhook_file: Some(file.path().into()), ..Default::default() };
    let mut alerts = Alerts::new(&config, about());
    alerts.tell(AlertKind::NodeGivenUp, "n3", "node n3 has failed 3 times", json!({ "node": "n3" }));
    alerts.tell(AlertKind::NodeGivenUp, "n3", "node n3 has failed 3 times", json!({ "node": "n3" }));
    alerts.tell(AlertKind::Finished, "", "not asked for", Value::Null);
    let sent = alerts.finish();
    assert!(sent.len() == 1 && sent[0].failure.is_none(), "{sent:?}");
    let body: Value = serde_json::from_str(&thread.join().unwrap()).unwrap();
    assert_eq!(body["text"], "herd: demo: node n3 has failed 3 times");
    assert!(body["kind"] == "node_given_up" && body["node"] == "n3" && body["job"] == 7);
}

#[test]
fn what_fails_says_why_without_the_secret() {
    let (address, thread) = server("404 Not Found");
    let closed = "http://127.0.0.1:1/services/SECRET";
    for (address, words) in
        [(address.as_str(), "HTTP status 404"), (closed, "connection failed"), ("SECRET", "no http"), ("", "empty")]
    {
        let file = secret_file(address);
        let config = AlertsSection { webhook_file: Some(file.path().into()), timeout_s: 5.0, ..Default::default() };
        let mut alerts = Alerts::new(&config, about());
        alerts.tell(AlertKind::Stopped, "", "x", Value::Null);
        let failure = alerts.finish().remove(0).failure.unwrap();
        assert!(failure.contains(words) || address == "SECRET", "{address}: {failure}");
        assert!(!failure.contains("SECRET"), "{failure}");
    }
    thread.join().unwrap();
    let config = AlertsSection { webhook_env: Some("HERD_TEST_NO_SUCH_VARIABLE".into()), ..Default::default() };
    assert!(address_error(&config).contains("HERD_TEST_NO_SUCH_VARIABLE"));
}

fn address_error(config: &AlertsSection) -> String {
    address(config).unwrap_err()
}

#[test]
fn programs_get_the_event_and_a_hanging_one_is_given_up() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name).display().to_string();
    let sh = |script: String| vec!["sh".to_string(), "-c".into(), script];
    let mut mail = sh(format!("printf '%s\n' \"$0\" >{0}; cat >>{0}", at("mail")));
    mail.push("{subject}".into());
    let config = AlertsSection { mail, command: sh(format!("cat >{}", at("event"))), ..Default::default() };
    let mut alerts = Alerts::new(&config, about());
    alerts.tell(AlertKind::Requeued, "1", "back in the queue", json!({ "attempt": 4 }));
    assert!(alerts.finish().iter().all(|s| s.failure.is_none()));
    let letter = std::fs::read_to_string(at("mail")).unwrap();
    assert!(letter.starts_with("herd: demo: back in the queue\n") && letter.contains("attempt: 4"), "{letter}");
    let event: Value = serde_json::from_str(&std::fs::read_to_string(at("event")).unwrap()).unwrap();
    assert!(event["kind"] == "requeued" && event["attempt"] == 4);

    let config = AlertsSection { command: sh("exec sleep 60".into()), timeout_s: 1.0, ..Default::default() };
    let mut alerts = Alerts::new(&config, about());
    let began = Instant::now();
    alerts.tell(AlertKind::Stopped, "", "x", Value::Null);
    assert!(began.elapsed() < Duration::from_millis(200), "the caller does not wait");
    assert!(alerts.finish()[0].failure.as_ref().unwrap().contains("did not end within 1 s"));
}

#[test]
fn a_flood_is_cut_off_and_counted() {
    let mut limit = RateLimit::new(2);
    let now = Instant::now();
    assert_eq!(
        (limit.admit(now), limit.admit(now), limit.admit(now), limit.admit(now)),
        (Some(0), Some(0), None, None)
    );
    assert_eq!(limit.admit(now + Duration::from_secs(3601)), Some(2));
}
