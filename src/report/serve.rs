//! The page of runs that go on, for one person: on one address, behind a token that is part of its path, one look at the files
//! at a time however many browsers ask.

use super::gather::RunView;
use super::page::page;
use crate::error::{Error, Exit, Result};
use crate::threads::lock;
use axum::extract::{Path as Segment, State};
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE, REFERRER_POLICY, X_CONTENT_TYPE_OPTIONS};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::Router;
use jiff::Timestamp;
use serde_json::{json, Value};
use std::fs::OpenOptions;
use std::io::{Read, Write};
use std::net::SocketAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// The files are looked at no more often than that.
const EVERY: Duration = Duration::from_secs(2);

/// Runs that are shown together.
pub struct Views {
    runs: Vec<RunView>,
}

impl Views {
    /// # Errors
    /// [`Exit::Usage`] for a directory that is no run's.
    pub fn open(dirs: &[PathBuf]) -> Result<Views> {
        Ok(Views { runs: dirs.iter().map(|d| RunView::open(d)).collect::<Result<_>>()? })
    }

    /// The data of the page. A run that cannot be read any more is told of, beside the others.
    pub fn look(&mut self, now: Timestamp) -> Value {
        let (mut runs, mut problems) = (Vec::new(), Vec::new());
        for view in &mut self.runs {
            match view.look(now) {
                Ok(run) => runs.push(run),
                Err(e) => problems.push(e.to_string()),
            }
        }
        json!({ "written": now, "herd": env!("CARGO_PKG_VERSION"), "runs": runs, "problems": problems })
    }
}

struct Shared {
    token: String,
    views: Mutex<Looked>,
}

struct Looked {
    views: Views,
    at: Option<Instant>,
    data: Arc<Value>,
}

impl Shared {
    fn data(&self) -> Arc<Value> {
        let mut l = lock(&self.views);
        if l.at.is_none_or(|at| at.elapsed() >= EVERY) {
            l.data = Arc::new(l.views.look(Timestamp::now()));
            l.at = Some(Instant::now());
        }
        l.data.clone()
    }
}

/// Serves `views` on `listen` until the process is ended. `address_file` gets the address (mode 0600) and `told` is called with
/// it once connections are taken.
///
/// # Errors
/// [`Exit::Usage`] where the address cannot be listened on; [`Exit::Storage`].
pub fn serve(views: Views, listen: SocketAddr, address_file: &Path, told: &dyn Fn(&str) -> Result<()>) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|e| Error::new(Exit::Internal, format!("cannot start the server: {e}")))?;
    let token = token()?;
    let views = Mutex::new(Looked { views, at: None, data: Arc::new(Value::Null) });
    let shared = Arc::new(Shared { token: token.clone(), views });
    runtime.block_on(async {
        let refused = |e: std::io::Error| {
            Error::new(Exit::Usage, format!("cannot listen on {listen}: {e}"))
                .hint("another port with --listen, or port 0 for any that is free")
        };
        let listener = tokio::net::TcpListener::bind(listen).await.map_err(refused)?;
        let address = listener.local_addr().map_err(refused)?;
        let url = format!("http{}{address}/{token}/", "://");
        let file = AddressFile::write(address_file, &url)?;
        told(&url)?;
        let stopped = axum::serve(listener, router(shared)).with_graceful_shutdown(ended());
        let end = stopped.await.map_err(|e| Error::new(Exit::Internal, format!("the server ended: {e}")));
        drop(file);
        end
    })
}

/// SIGINT or SIGTERM.
async fn ended() {
    let flag = Arc::new(std::sync::atomic::AtomicBool::new(false));
    for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM] {
        // a second one ends the process at once
        let _ = signal_hook::flag::register_conditional_shutdown(signal, 130, flag.clone());
        let _ = signal_hook::flag::register(signal, flag.clone());
    }
    while !flag.load(std::sync::atomic::Ordering::Relaxed) {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

fn router(shared: Arc<Shared>) -> Router {
    Router::new().route("/{token}/", get(whole)).route("/{token}/data.json", get(data)).with_state(shared)
}

async fn whole(state: State<Arc<Shared>>, token: Segment<String>) -> Response {
    answer(state, token, "text/html; charset=utf-8", |data| page(data, true)).await
}

async fn data(state: State<Arc<Shared>>, token: Segment<String>) -> Response {
    answer(state, token, "application/json", |data| data.to_string()).await
}

async fn answer(
    State(shared): State<Arc<Shared>>, Segment(token): Segment<String>, kind: &'static str, make: fn(&Value) -> String,
) -> Response {
    if !same(token.as_bytes(), shared.token.as_bytes()) {
        return (StatusCode::NOT_FOUND, "not found\n").into_response();
    }
    let made = tokio::task::spawn_blocking(move || {
        let data = shared.data();
        (make(&data), changed(&data))
    });
    match made.await {
        Ok((text, tag)) => {
            let fixed = [
                (CONTENT_TYPE, kind),
                (CACHE_CONTROL, "no-store"),
                (REFERRER_POLICY, "no-referrer"),
                (X_CONTENT_TYPE_OPTIONS, "nosniff"),
            ];
            (fixed, [("x-herd-changed", tag)], text).into_response()
        }
        Err(_) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}

/// What a page draws anew for: steps, events and states, without the clock.
fn changed(data: &Value) -> String {
    let of = |r: &Value| {
        let events = r["events"].as_array().map_or(0, Vec::len);
        format!(
            "{}-{}-{}-{}",
            r["series"]["steps"],
            r["attempts"].as_array().map_or(0, Vec::len),
            events,
            r["status"]["state"]
        )
    };
    let all: Vec<String> = data["runs"].as_array().into_iter().flatten().map(of).collect();
    all.join(",").replace('"', "")
}

/// Compares in a time that tells nothing of where they differ.
fn same(a: &[u8], b: &[u8]) -> bool {
    a.len() == b.len() && a.iter().zip(b).fold(0, |d, (x, y)| d | (x ^ y)) == 0
}

/// 128 random bits, in hexadecimal.
fn token() -> Result<String> {
    let mut bytes = [0u8; 16];
    let read = std::fs::File::open("/dev/urandom").and_then(|mut f| f.read_exact(&mut bytes));
    read.map_err(|e| Error::io(Path::new("/dev/urandom"), "read", &e, Exit::Storage))?;
    Ok(bytes.iter().map(|b| format!("{b:02x}")).collect())
}

/// The address in a file that only its owner can read; removed when the server ends.
struct AddressFile(PathBuf);

impl AddressFile {
    fn write(path: &Path, url: &str) -> Result<AddressFile> {
        let refused = |e: std::io::Error| Error::io(path, "write", &e, Exit::Storage);
        let mut temporary = path.as_os_str().to_os_string();
        temporary.push(format!(".{}", std::process::id()));
        let temporary = PathBuf::from(temporary);
        let _ = std::fs::remove_file(&temporary);
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary).map_err(refused)?;
        file.write_all(format!("{url}\n").as_bytes()).map_err(refused)?;
        std::fs::rename(&temporary, path).map_err(refused)?;
        Ok(AddressFile(path.to_path_buf()))
    }
}

impl Drop for AddressFile {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_differ_and_are_compared_whole() {
        let (a, b) = (token().unwrap(), token().unwrap());
        assert!(a.len() == 32 && a != b && same(a.as_bytes(), a.as_bytes()));
        assert!(!same(a.as_bytes(), b.as_bytes()) && !same(a.as_bytes(), &a.as_bytes()[..31]));
    }

    #[test]
    fn the_address_is_readable_to_its_owner_only() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("report.url");
        let file = AddressFile::write(&path, "x").unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        drop(file);
        assert!(!path.exists());
    }
}
