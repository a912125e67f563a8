//! An open place in an object store, with blocking calls: its own small runtime waits for the network.
//!
//! Objects below the prefix: `step-NNNNNNNN/manifest.json`, and the data files as `step-NNNNNNNN/DIGEST/NAME`, where DIGEST
//! is the XXH3-64 of the manifest's bytes. So a step that is saved again never mixes with what stood there before: putting
//! the manifest, which is one atomic operation, is the moment at which the new content takes the place of the old.

use crate::checkpoint::disk::directory;
use crate::checkpoint::manifest::{self, FileEntry, Manifest};
use crate::checkpoint::meta::hex;
use crate::checkpoint::Checkpoint;
use crate::error::{Error, Exit, Result};
use crate::progress::Meter;
use crate::store::place;
use crate::store::sums::FileChecksums;
use futures_util::{StreamExt, TryStreamExt};
use object_store::path::Path as ObjectPath;
use object_store::{ObjectStore, ObjectStoreExt};
use std::collections::BTreeMap;
use std::future::Future;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio::runtime::Runtime;
use xxhash_rust::xxh3::xxh3_64;

/// Bytes of a file that one request reads back, and how many requests are under way.
const READ: u64 = 8 << 20;
const AT_ONCE: usize = 4;
const CREDENTIALS: &str = "check the credentials in the environment, and what they may do";
const NO_CREDENTIALS: &str =
    "no credentials were found: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or write ~/.aws/credentials";

/// An open place in an object store, with the runtime that waits for its answers.
pub struct Remote {
    url: String,
    pub(super) store: Arc<dyn ObjectStore>,
    prefix: ObjectPath,
    runtime: Runtime,
}

/// What lies under one step.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct RemoteStep {
    pub manifest: bool,
    pub objects: Vec<Object>,
}

/// A data file, of this or of an older content of the step.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Object {
    pub digest: String,
    pub name: String,
    pub size: u64,
    pub e_tag: Option<String>,
}

impl Remote {
    /// Opens `url` without a request. Errors as [`place::open`].
    pub fn open(url: &str) -> Result<Remote> {
        let (store, prefix) = place::open(url)?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime =
            runtime.map_err(|e| Error::new(Exit::Internal, format!("no runtime for the object store: {e}")))?;
        Ok(Remote { url: url.trim_end_matches('/').into(), store, prefix, runtime })
    }

    /// The place that was opened, without a slash at the end.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Where a step is, for messages.
    pub fn step_url(&self, step: u64) -> String {
        format!("{}/{}", self.url, directory(step))
    }

    /// Steps with a manifest, newest first.
    ///
    /// Errors, as of all that asks the store: [`Exit::Store`].
    pub fn steps(&self) -> Result<Vec<u64>> {
        Ok(self.listing()?.into_iter().rev().filter(|(_, s)| s.manifest).map(|(step, _)| step).collect())
    }

    /// Everything under the prefix that herd could have put there, by step.
    pub(super) fn listing(&self) -> Result<BTreeMap<u64, RemoteStep>> {
        self.wait(async {
            let all: Vec<_> = self.store.list(Some(&self.prefix)).try_collect().await.or_else(|e| match e {
                object_store::Error::NotFound { .. } if self.url.starts_with("file:") => Ok(Vec::new()),
                e => Err(self.refused("list", "", &e)),
            })?;
            let mut steps: BTreeMap<u64, RemoteStep> = BTreeMap::new();
            for object in all {
                let Some(parts) = object.location.prefix_match(&self.prefix) else { continue };
                let parts: Vec<String> = parts.map(|p| p.as_ref().to_string()).collect();
                let Some(step) = parts.first().and_then(|p| p.strip_prefix("step-")?.parse().ok()) else { continue };
                let entry = steps.entry(step).or_default();
                match &parts[1..] {
                    [name] if name == manifest::NAME => entry.manifest = true,
                    [digest, name] => entry.objects.push(Object {
                        digest: digest.clone(),
                        name: name.clone(),
                        size: object.size,
                        e_tag: object.e_tag,
                    }),
                    _ => {}
                }
            }
            Ok(steps)
        })
    }

    /// The bytes of a step's manifest. `None` where there is none.
    pub fn manifest(&self, step: u64) -> Result<Option<Vec<u8>>> {
        let key = self.manifest_key(step);
        self.wait(async {
            match self.store.get(&key).await {
                Ok(found) => {
                    Ok(Some(found.bytes().await.map_err(|e| self.refused("read", key.as_ref(), &e))?.to_vec()))
                }
                Err(object_store::Error::NotFound { .. }) => Ok(None),
                Err(e) => Err(self.refused("read", key.as_ref(), &e)),
            }
        })
    }

    /// The description of a step's checkpoint; its files are not looked at and cannot be read by it. Errors: those of [`Remote::parsed`].
    pub fn checkpoint(&self, step: u64) -> Result<Checkpoint> {
        Checkpoint::from_manifest(Path::new(&self.step_url(step)), &self.parsed(step)?.0)
    }

    /// The manifest of a step: its bytes, and parsed. Errors: [`Exit::Checkpoint`] for one that is absent, damaged, or of another step.
    pub fn parsed(&self, step: u64) -> Result<(Vec<u8>, Manifest)> {
        let url = self.step_url(step);
        let bytes = self
            .manifest(step)?
            .ok_or_else(|| Error::new(Exit::Checkpoint, format!("{url} has no {}", manifest::NAME)))?;
        let parsed = Manifest::parse(&bytes, &PathBuf::from(&url).join(manifest::NAME))?;
        match parsed.meta.step == step {
            true => Ok((bytes, parsed)),
            false => Err(Error::new(Exit::Checkpoint, format!("{url} holds step {}", parsed.meta.step))),
        }
    }

    /// Reads every byte of a data file and compares its checksums: what is wrong with it, if anything.
    pub fn check(
        &self, step: u64, digest: &str, m: &Manifest, file: &FileEntry, meter: &Meter,
    ) -> Result<Option<String>> {
        self.wait(self.read_back(&self.key(step, digest, &file.name), m, file, meter))
    }

    pub(super) async fn read_back(
        &self, key: &ObjectPath, m: &Manifest, file: &FileEntry, meter: &Meter,
    ) -> Result<Option<String>> {
        let failed = |e: object_store::Error| self.refused("read", key.as_ref(), &e);
        let found = match self.store.head(key).await {
            Err(object_store::Error::NotFound { .. }) => return Ok(Some(format!("{} is missing", file.name))),
            other => other.map_err(failed)?,
        };
        if found.size != file.size {
            return Ok(Some(format!("{} has {} bytes, the manifest says {}", file.name, found.size, file.size)));
        }
        // In ranges: a request has a time limit, which must not bound the size of a file.
        let ranges = (0..file.size).step_by(READ as usize).map(|at| at..(at + READ).min(file.size));
        let mut parts =
            futures_util::stream::iter(ranges).map(|range| self.store.get_range(key, range)).buffered(AT_ONCE);
        let mut sums = FileChecksums::new(m, file);
        while let Some(bytes) = parts.next().await {
            let bytes = bytes.map_err(failed)?;
            meter.add(bytes.len() as u64);
            sums.feed(&bytes);
        }
        Ok(sums.finish())
    }

    /// Removes a step, manifest first, so that what is half removed is no checkpoint.
    pub(super) fn remove(&self, step: u64, held: &RemoteStep) -> Result<()> {
        let manifest = held.manifest.then(|| self.manifest_key(step));
        let data = held.objects.iter().map(|o| self.key(step, &o.digest, &o.name));
        self.delete(manifest.into_iter().chain(data).collect())
    }

    /// Removes objects one after the other; those that are gone are fine.
    pub(super) fn delete(&self, keys: Vec<ObjectPath>) -> Result<()> {
        self.wait(async {
            for key in keys {
                match self.store.delete(&key).await {
                    Ok(()) | Err(object_store::Error::NotFound { .. }) => {}
                    Err(e) => return Err(self.refused("remove", key.as_ref(), &e)),
                }
            }
            Ok(())
        })
    }

    pub(super) fn manifest_key(&self, step: u64) -> ObjectPath {
        self.prefix.clone().join(directory(step)).join(manifest::NAME)
    }

    pub(super) fn key(&self, step: u64, digest: &str, name: &str) -> ObjectPath {
        self.prefix.clone().join(directory(step)).join(digest).join(name)
    }

    pub(super) fn wait<T>(&self, what: impl Future<Output = Result<T>>) -> Result<T> {
        self.runtime.block_on(what)
    }

    /// One line without credentials: the store's answers can be pages of XML.
    pub(super) fn refused(&self, doing: &str, key: &str, e: &object_store::Error) -> Error {
        use object_store::Error as E;
        let place =
            key.strip_prefix(self.prefix.as_ref()).map_or(String::new(), |k| format!("/{}", k.trim_matches('/')));
        let why = short(&place::scrub(&causes(e)));
        let has = |words: &[&str]| words.iter().any(|w| why.contains(w));
        let hint = match e {
            E::PermissionDenied { .. } | E::Unauthenticated { .. } => CREDENTIALS,
            _ if has(&["SignatureDoesNotMatch", "InvalidAccessKeyId", "AccessDenied", "403 ", "401 "]) => CREDENTIALS,
            _ if has(&["NoSuchBucket"]) => "create the bucket, or check its name",
            _ if has(&["169.254.169.254"]) => NO_CREDENTIALS,
            _ => "check the endpoint and the network",
        };
        Error::new(Exit::Store, format!("cannot {doing} {}{}: {why}", self.url, place.trim_end_matches('/'))).hint(hint)
    }
}

/// The error's own words: of a body of XML only code and message.
fn short(text: &str) -> String {
    let inside = |tag: &str| Some(text.split_once(&format!("<{tag}>"))?.1.split_once("</")?.0.to_string());
    let head = text.split("<?xml").next().unwrap_or(text).trim_end_matches([' ', ':']);
    let body = [inside("Code"), inside("Message")].into_iter().flatten().collect::<Vec<_>>().join(": ");
    let all = if body.is_empty() { head.to_string() } else { format!("{head}: {body}") };
    all.chars().take(400).collect()
}

/// Directory of a manifest's data files.
pub(super) fn digest(manifest: &[u8]) -> String {
    hex(xxh3_64(manifest))
}

/// The messages of an error and of what caused it, each once.
fn causes(e: &object_store::Error) -> String {
    let mut text = e.to_string();
    let mut next = std::error::Error::source(e);
    while let Some(cause) = next {
        let more = cause.to_string();
        if !text.contains(&more) {
            text += &format!(": {more}");
        }
        next = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_of_a_store_become_one_line() {
        let text =
            "Generic S3 error: 404 Not Found: <?xml version=\"1.0\"?> <Error><Code>NoSuchBucket</Code><Message>It is \
                    not there</Message><Resource>/x</Resource></Error>";
        assert_eq!(short(text), "Generic S3 error: 404 Not Found: NoSuchBucket: It is not there");
        assert_eq!(short("connection refused"), "connection refused");
    }
}
