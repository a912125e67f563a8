//! The server's thread.

use crate::error::{Error, Exit, Result};
use crate::serve::http::address::Door;
use crate::serve::http::front::FrontDesk;
use crate::serve::http::routes::router;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;
use tokio::sync::oneshot;

/// Threads for work that takes long, tokenizing above all.
const ASIDE: usize = 2;
/// How long answers that are whole may take to reach their clients at the end.
const FLUSH: Duration = Duration::from_secs(3);

/// A running server.
pub struct RunningServer {
    thread: JoinHandle<Result<()>>,
    end: oneshot::Sender<()>,
}

impl RunningServer {
    /// Listens from now on.
    pub fn start(door: Door, front: Arc<FrontDesk>) -> Result<RunningServer> {
        let (end, ended) = oneshot::channel();
        let (ready, is_ready) = std::sync::mpsc::channel();
        let work = move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .max_blocking_threads(ASIDE)
                .build()
                .map_err(failed)?;
            let _ = ready.send(());
            let served = runtime.block_on(serve(&door, front, ended));
            // Clients that read no more are not waited for.
            runtime.shutdown_background();
            served
        };
        let thread = std::thread::Builder::new().name("http".into()).spawn(work).map_err(failed)?;
        let _ = is_ready.recv();
        Ok(RunningServer { thread, end })
    }

    /// Whether it has ended by itself.
    pub fn is_over(&self) -> bool {
        self.thread.is_finished()
    }

    /// Sends what is whole, and ends.
    pub fn end(self) -> Result<()> {
        let _ = self.end.send(());
        self.thread.join().unwrap_or_else(|_| Err(Error::new(Exit::Internal, "the server's thread panicked")))
    }
}

async fn serve(door: &Door, front: Arc<FrontDesk>, ended: oneshot::Receiver<()>) -> Result<()> {
    let (flush, flushed) = oneshot::channel();
    let until = async move {
        let _ = ended.await;
        let _ = flush.send(());
    };
    let late = async move {
        let _ = flushed.await;
        tokio::time::sleep(FLUSH).await;
    };
    let app = router(front);
    let serving = async {
        match door {
            Door::Unix(listener, _) => {
                let listener = listener.try_clone()?;
                listener.set_nonblocking(true)?;
                axum::serve(tokio::net::UnixListener::from_std(listener)?, app).with_graceful_shutdown(until).await
            }
            Door::Tcp(listener, _) => {
                let listener = listener.try_clone()?;
                listener.set_nonblocking(true)?;
                let listener = tokio::net::TcpListener::from_std(listener)?;
                axum::serve(axum::serve::ListenerExt::tap_io(listener, |io| drop(io.set_nodelay(true))), app)
                    .with_graceful_shutdown(until)
                    .await
            }
        }
    };
    tokio::select! {
        served = serving => served.map_err(failed),
        () = late => Ok(()),
    }
}

fn failed(e: std::io::Error) -> Error {
    Error::new(Exit::Internal, format!("the server: {e}"))
}
