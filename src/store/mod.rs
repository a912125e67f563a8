//! The object store tier (L4): copies of committed checkpoints in S3, Google Cloud Storage, Azure or a local path.
//!
//! - [`place`]: from a URL to a store, credentials
//! - [`Remote`]: an open place, with blocking calls; what lies where
//! - `upload`, `download`: one checkpoint there and back, verified on both ways
//! - [`Uploader`]: the thread behind training; [`UploadLedger`]: what it knows to be safe
//! - [`fetch_newer`]: where a run looks when nothing nearer is whole

mod aws;
mod download;
mod ledger;
mod pace;
pub mod place;
mod remote;
mod sums;
mod upload;
mod uploader;
mod verify;

pub use download::{fetch, fetch_newer, persist as persist_fetch};
pub use ledger::UploadLedger;
pub use pace::Pace;
pub use remote::Remote;
pub use upload::{retain, Uploaded, Way};
pub use uploader::{persist as persist_upload, Uploader};
pub use verify::verify;
