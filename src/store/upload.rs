//! One try at bringing a checkpoint into an object store: data files first, each checked against the manifest on the way,
//! then the manifest.
//!
//! Killed at any moment it leaves no manifest, or a whole checkpoint. Objects appear whole or not at all (a multi-part
//! upload that is not completed is none), so the next try skips what is there in full.

use crate::checkpoint::directory;
use crate::checkpoint::manifest::{FileEntry, Manifest};
use crate::checkpoint::read::{manifest_bytes, Checkpoint};
use crate::error::{Error, Exit, Result};
use crate::progress::Meter;
use crate::store::pace::Pace;
use crate::store::remote::{digest, Object, Remote};
use crate::store::sums::FileChecksums;
use futures_util::stream::{FuturesUnordered, StreamExt};
use md5::{Digest, Md5};
use object_store::path::Path as ObjectPath;
use object_store::{MultipartUpload, ObjectStoreExt};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Smallest part; S3 takes 5 MiB or more, and at most 10,000 of them.
const PART: u64 = 8 << 20;
const MAX_PARTS: u64 = 9_000;

/// How an upload goes about it.
pub struct Way<'a> {
    /// The bandwidth limit, which goes on from one upload to the next.
    pub pace: &'a mut Pace,
    /// Parts under way at once.
    pub parallel: usize,
    /// Set by who does not want to wait any longer: the try ends with an error at the next part.
    pub cancel: &'a AtomicBool,
    /// Counts the bytes sent, found there already, or read back.
    pub meter: &'a Meter,
}

/// A checkpoint that is whole and verified in the store.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct Uploaded {
    /// Step of the checkpoint.
    pub step: u64,
    /// Where the step lies in the store.
    pub url: String,
    /// Bytes of the checkpoint.
    pub bytes: u64,
    /// Bytes sent by this try; the others were there already.
    pub sent: u64,
    /// Wall time of this try.
    pub seconds: f64,
}

/// Uploads the checkpoint in the directory `from`.
///
/// Every file is compared with the manifest's checksums while it is read, and verified in the store: by the store's e-tag
/// where that is the MD5 of what was sent, else by reading the object back.
///
/// Errors: [`Exit::Checkpoint`] when the local checkpoint is not whole, [`Exit::Store`] for the store.
pub fn upload(remote: &Remote, from: &Path, way: &mut Way) -> Result<Uploaded> {
    let began = Instant::now();
    let bytes = manifest_bytes(from)?;
    let checkpoint = Checkpoint::open(from)?;
    let (manifest, step, digest) = (checkpoint.manifest(), checkpoint.meta().step, digest(&bytes));
    let held = remote.listing()?.remove(&step).unwrap_or_default();
    way.meter.begin(format!("upload {}", directory(step)), checkpoint.bytes());
    let mut sent = 0;
    for file in &manifest.files {
        let there = held.objects.iter().find(|o| o.digest == digest && o.name == file.name);
        let key = remote.key(step, &digest, &file.name);
        sent += remote.wait(bring(remote, from, manifest, file, &key, there, way))?;
    }
    // Another uploader's clean-up, or anybody's, may have come between.
    let held = remote.listing()?.remove(&step).unwrap_or_default();
    let there = |f: &FileEntry| held.objects.iter().any(|o| o.digest == digest && o.name == f.name && o.size == f.size);
    if let Some(gone) = manifest.files.iter().find(|f| !there(f)) {
        let url = remote.step_url(step);
        return Err(Error::new(Exit::Store, format!("{}, just uploaded to {url}, is not there", gone.name)));
    }
    let key = remote.manifest_key(step);
    if !held.manifest || remote.manifest(step)?.as_ref() != Some(&bytes) {
        remote.wait(async {
            let put = remote.store.put(&key, bytes.clone().into()).await;
            put.map_err(|e| remote.refused("write", key.as_ref(), &e))
        })?;
        sent += bytes.len() as u64;
    }
    if remote.manifest(step)?.as_ref() != Some(&bytes) {
        return Err(Error::new(Exit::Store, format!("{} does not give back its manifest", remote.step_url(step))));
    }
    let old = held.objects.iter().filter(|o| o.digest != digest).map(|o| remote.key(step, &o.digest, &o.name));
    remote.delete(old.collect())?;
    let total = checkpoint.bytes() + bytes.len() as u64;
    Ok(Uploaded { step, url: remote.step_url(step), bytes: total, sent, seconds: began.elapsed().as_secs_f64() })
}

/// Keeps the newest `keep` whole checkpoints (0: all) of the store and removes what is older: other checkpoints, and data of
/// uploads that were never finished. Returns the steps removed; `dry` only tells them.
///
/// `whole`, asked of the newest until it says yes, is what makes sure that the only whole one never goes.
pub fn retain(remote: &Remote, keep: usize, dry: bool, whole: &mut dyn FnMut(u64) -> Result<bool>) -> Result<Vec<u64>> {
    let all = remote.listing()?;
    let Some(newest) = all.iter().rev().find(|(_, s)| s.manifest).map(|(step, _)| *step) else { return Ok(Vec::new()) };
    let (mut gone, mut kept, mut sure) = (Vec::new(), 0, false);
    for (step, held) in all.into_iter().rev() {
        let stays = match held.manifest {
            false => step > newest,
            true if !sure => {
                sure = whole(step)?;
                kept += usize::from(sure);
                true
            }
            true => {
                kept += 1;
                keep == 0 || kept <= keep
            }
        };
        if !stays {
            if !dry {
                remote.remove(step, &held)?;
            }
            gone.push(step);
        }
    }
    Ok(gone)
}

/// Makes the object of one file whole; returns the bytes sent.
async fn bring(
    remote: &Remote, from: &Path, m: &Manifest, file: &FileEntry, key: &ObjectPath, there: Option<&Object>,
    way: &mut Way<'_>,
) -> Result<u64> {
    let path = from.join(&file.name);
    let local = File::open(&path).map_err(|e| Error::io(&path, "read", &e, Exit::Checkpoint))?;
    if let Some(object) = there.filter(|o| o.size == file.size) {
        let tag = read_parts(&path, &local, m, file, way)?;
        if same_tag(&object.e_tag, &tag) || read_back(remote, key, m, file, way).await?.is_none() {
            return Ok(0);
        }
        way.meter.more(file.size);
    }
    let (tag, e_tag) = match file.size <= part_size(file.size) {
        true => send_whole(remote, &path, &local, m, file, key, way).await?,
        false => send_parts(remote, &path, &local, m, file, key, way).await?,
    };
    if !same_tag(&e_tag, &tag) {
        if let Some(problem) = read_back(remote, key, m, file, way).await? {
            return Err(Error::new(Exit::Store, format!("{}: after the upload {problem}", remote.url())));
        }
    }
    Ok(file.size)
}

async fn read_back(
    remote: &Remote, key: &ObjectPath, m: &Manifest, file: &FileEntry, way: &Way<'_>,
) -> Result<Option<String>> {
    way.meter.more(file.size);
    remote.read_back(key, m, file, way.meter).await
}

fn part_size(size: u64) -> u64 {
    PART.max(size.div_ceil(MAX_PARTS).next_multiple_of(1 << 20))
}

fn read_part(path: &Path, local: &File, at: u64, file: &FileEntry) -> Result<Vec<u8>> {
    let mut part = vec![0; part_size(file.size).min(file.size - at) as usize];
    local.read_exact_at(&mut part, at).map_err(|e| Error::io(path, "read", &e, Exit::Checkpoint))?;
    Ok(part)
}

/// The e-tag that S3 gives this file: the MD5 of an object, or of the MD5s of its parts with their number.
fn tag(parts: &[[u8; 16]], whole: bool) -> String {
    let hex = |d: &[u8]| d.iter().map(|b| format!("{b:02x}")).collect::<String>();
    match parts {
        [one] if whole => hex(one),
        _ => format!("{}-{}", hex(&Md5::digest(parts.concat())), parts.len()),
    }
}

fn same_tag(theirs: &Option<String>, ours: &str) -> bool {
    theirs.as_ref().is_some_and(|t| t.trim_matches('"').eq_ignore_ascii_case(ours))
}

fn cancelled() -> Error {
    Error::new(Exit::Store, "the upload was cut short: no time left")
}

/// The local file against the manifest, and its tag, without sending anything.
fn read_parts(path: &Path, local: &File, m: &Manifest, file: &FileEntry, way: &Way) -> Result<String> {
    let (mut sums, mut md5s) = (FileChecksums::new(m, file), Vec::new());
    let size = part_size(file.size);
    for at in (0..file.size).step_by(size as usize) {
        if way.cancel.load(Ordering::Relaxed) {
            return Err(cancelled());
        }
        let part = read_part(path, local, at, file)?;
        sums.feed(&part);
        md5s.push(Md5::digest(&part).into());
        way.meter.add(part.len() as u64);
    }
    match sums.finish() {
        Some(problem) => Err(Error::new(Exit::Checkpoint, format!("{}: {problem}", path.display()))),
        None => Ok(tag(&md5s, file.size <= size)),
    }
}

async fn send_whole(
    remote: &Remote, path: &Path, local: &File, m: &Manifest, file: &FileEntry, key: &ObjectPath, way: &mut Way<'_>,
) -> Result<(String, Option<String>)> {
    if way.cancel.load(Ordering::Relaxed) {
        return Err(cancelled());
    }
    let part = read_part(path, local, 0, file)?;
    let mut sums = FileChecksums::new(m, file);
    sums.feed(&part);
    if let Some(problem) = sums.finish() {
        return Err(Error::new(Exit::Checkpoint, format!("{}: {problem}", path.display())));
    }
    let ours = tag(&[Md5::digest(&part).into()], true);
    tokio::time::sleep(way.pace.wait_for(part.len(), Instant::now())).await;
    let put = remote.store.put(key, part.into()).await.map_err(|e| remote.refused("write", key.as_ref(), &e))?;
    way.meter.add(file.size);
    Ok((ours, put.e_tag))
}

async fn send_parts(
    remote: &Remote, path: &Path, local: &File, m: &Manifest, file: &FileEntry, key: &ObjectPath, way: &mut Way<'_>,
) -> Result<(String, Option<String>)> {
    let failed = |e: object_store::Error| remote.refused("write", key.as_ref(), &e);
    let mut upload = remote.store.put_multipart(key).await.map_err(failed)?;
    let sent = async {
        let (mut sums, mut md5s, mut under_way) = (FileChecksums::new(m, file), Vec::new(), FuturesUnordered::new());
        for at in (0..file.size).step_by(part_size(file.size) as usize) {
            while under_way.len() >= way.parallel.max(1) {
                under_way.next().await.transpose().map_err(failed)?;
            }
            if way.cancel.load(Ordering::Relaxed) {
                return Err(cancelled());
            }
            let part = read_part(path, local, at, file)?;
            sums.feed(&part);
            md5s.push(Md5::digest(&part).into());
            let pause = way.pace.wait_for(part.len(), Instant::now());
            let (meter, size) = (way.meter, part.len() as u64);
            let request = upload.put_part(part.into());
            under_way.push(async move {
                tokio::time::sleep(pause).await;
                request.await.inspect(|()| meter.add(size))
            });
        }
        while let Some(done) = under_way.next().await {
            done.map_err(failed)?;
        }
        match sums.finish() {
            // Before anybody can see the object.
            Some(problem) => Err(Error::new(Exit::Checkpoint, format!("{}: {problem}", path.display()))),
            None => Ok(tag(&md5s, false)),
        }
    };
    match sent.await {
        Ok(ours) => Ok((ours, upload.complete().await.map_err(failed)?.e_tag)),
        Err(e) => {
            abandon(upload).await;
            Err(e)
        }
    }
}

/// Frees the parts of an upload that will not be completed, if the store answers soon; else its own rules have to.
async fn abandon(mut upload: Box<dyn MultipartUpload>) {
    let _ = tokio::time::timeout(Duration::from_secs(3), upload.abort()).await;
}
