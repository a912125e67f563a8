//! From the object store to a directory: downloaded under a temporary name, every byte checked, then renamed.

use crate::checkpoint::disk::directory;
use crate::checkpoint::manifest::{self, FileEntry};
use crate::checkpoint::{disk, Checkpoint};
use crate::config::StoreSection;
use crate::error::{Error, Exit, Result};
use crate::events::RunEvent;
use crate::progress::Meter;
use crate::store::pace::pause;
use crate::store::remote::{digest, Remote};
use futures_util::stream::{FuturesUnordered, StreamExt};
use object_store::path::Path as ObjectPath;
use object_store::ObjectStoreExt;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// Bytes of one request.
const PART: u64 = 8 << 20;
/// Tries at one checkpoint before an older one is taken.
const ATTEMPTS: u32 = 4;

/// Downloads `step`, or the newest, into `checkpoints/step-NNNNNNNN`, replacing what is there. `None` when the store holds
/// no such checkpoint; `meter` counts what comes, then what is verified. One try; on an error nothing is left behind.
///
/// Errors: [`Exit::Checkpoint`] when it is not whole in the store, [`Exit::Storage`] when it does not fit here,
/// [`Exit::Store`] when the store does not answer.
pub fn fetch(
    remote: &Remote, step: Option<u64>, checkpoints: &Path, parallel: usize, meter: &Meter,
) -> Result<Option<PathBuf>> {
    let steps = remote.steps()?;
    let Some(step) = (match step {
        Some(step) => steps.into_iter().find(|s| *s == step),
        None => steps.into_iter().next(),
    }) else {
        return Ok(None);
    };
    let name = directory(step);
    let temporary = checkpoints.join(format!("{name}.tmp-fetch"));
    let done = download(remote, step, &temporary, parallel, meter).and_then(|()| {
        let (path, aside) = (checkpoints.join(&name), checkpoints.join(format!("{name}.old-fetch")));
        disk::replace(&temporary, &path, &aside)?;
        disk::sync_dir(checkpoints)?;
        let _ = disk::remove_dir(&aside);
        Ok(path)
    });
    // After an error: what was downloaded. After an exchange of names: what stood there before.
    let _ = disk::remove_dir(&temporary);
    done.map(Some)
}

fn download(remote: &Remote, step: u64, into: &Path, parallel: usize, meter: &Meter) -> Result<()> {
    let (bytes, m) = remote.parsed(step)?;
    disk::remove_dir(into)?;
    std::fs::create_dir_all(into).map_err(disk::refused(into, "create"))?;
    let all = m.files.iter().map(|f| f.size).sum();
    enough_room(into, all)?;
    meter.begin(format!("download {}", directory(step)), all);
    for file in &m.files {
        let key = remote.key(step, &digest(&bytes), &file.name);
        remote.wait(receive(remote, &key, file, &into.join(&file.name), parallel, meter))?;
    }
    disk::write_synced(&into.join(manifest::NAME), &bytes)?;
    disk::sync_dir(into)?;
    // Reads the files again, so that what the disk made of them is checked too.
    meter.begin(format!("verify {}", directory(step)), all);
    match Checkpoint::open(into)?.verify_metered(meter).into_iter().find_map(|f| f.problem) {
        Some(problem) => Err(Error::new(Exit::Checkpoint, format!("{}: {problem}", remote.step_url(step)))),
        None => Ok(()),
    }
}

async fn receive(
    remote: &Remote, key: &ObjectPath, file: &FileEntry, path: &Path, parallel: usize, meter: &Meter,
) -> Result<()> {
    let failed = |e: object_store::Error| match e {
        object_store::Error::NotFound { .. } => {
            Error::new(Exit::Checkpoint, format!("{}: {} is missing", remote.url(), file.name))
        }
        e => remote.refused("read", key.as_ref(), &e),
    };
    let refused = disk::refused(path, "write");
    let local = File::create(path).map_err(&refused)?;
    let mut under_way = FuturesUnordered::new();
    let mut starts = (0..file.size).step_by(PART as usize);
    loop {
        while under_way.len() < parallel.max(1) {
            let Some(at) = starts.next() else { break };
            let range = at..(at + PART).min(file.size);
            under_way.push(async move { (range.clone(), remote.store.get_range(key, range).await) });
        }
        let Some((range, part)) = under_way.next().await else { break };
        let part = part.map_err(failed)?;
        if part.len() as u64 != range.end - range.start {
            let (n, want) = (part.len(), range.end - range.start);
            let fact = format!("{}: {} gave {n} of {want} bytes at {}", remote.url(), file.name, range.start);
            return Err(Error::new(Exit::Checkpoint, fact));
        }
        local.write_all_at(&part, range.start).map_err(&refused)?;
        meter.add(part.len() as u64);
    }
    local.sync_all().map_err(disk::refused(path, "sync"))
}

/// Refuses what does not fit before anything is downloaded.
fn enough_room(directory: &Path, need: u64) -> Result<()> {
    let free = rustix::fs::statvfs(directory).map(|s| s.f_bavail * s.f_frsize);
    match free {
        Ok(free) if free < need => Err(Error::new(
            Exit::Storage,
            format!("the checkpoint needs {need} bytes, {} has {free} free", directory.display()),
        )
        .hint("free space, then start again")),
        _ => Ok(()),
    }
}

/// Fetches the newest checkpoint of the store that is newer than `than` (what the nearer tiers hold) and whole; passes
/// over damaged ones. `None` when there is none. Call it on one rank.
///
/// A store that does not answer is an error only where nothing nearer is whole: a run must not start afresh because the
/// network was down. Otherwise it is an event.
pub fn fetch_newer(
    section: &StoreSection, checkpoints: &Path, than: Option<u64>, report: &mut dyn FnMut(&RunEvent),
) -> Result<Option<PathBuf>> {
    let mut tolerate = |e: Error| match than {
        None => Err(e),
        Some(_) => {
            report(&RunEvent::StorePassedOver { url: section.url.clone(), reason: e.to_string() });
            Ok(None)
        }
    };
    let opened = Remote::open(&section.url).and_then(|remote| Ok((remote.steps()?, remote)));
    let (steps, remote) = match opened {
        Ok(opened) => opened,
        Err(e) => return tolerate(e),
    };
    for step in steps.into_iter().filter(|s| than.is_none_or(|than| *s > than)) {
        match persist(&remote, step, checkpoints, section.parallel, &Meter::default()) {
            Ok(Some(path)) => {
                report(&RunEvent::Fetched { step, url: remote.step_url(step), path: path.clone() });
                return Ok(Some(path));
            }
            Ok(None) => {}
            Err(e) if e.exit == Exit::Checkpoint => {
                let (url, reason) = (remote.step_url(step), e.to_string());
                report(&RunEvent::RemoteRejected { step, url, reason });
            }
            Err(e) => match than {
                None => return Err(e),
                Some(_) => {
                    report(&RunEvent::StorePassedOver { url: section.url.clone(), reason: e.to_string() });
                    return Ok(None);
                }
            },
        }
    }
    Ok(None)
}

/// [`fetch`] with a few tries, as long as it is the store that fails.
pub fn persist(
    remote: &Remote, step: u64, checkpoints: &Path, parallel: usize, meter: &Meter,
) -> Result<Option<PathBuf>> {
    let mut attempt = 1;
    loop {
        match fetch(remote, Some(step), checkpoints, parallel, meter) {
            Err(e) if e.exit == Exit::Store && attempt < ATTEMPTS => {
                tracing::warn!("{e}; trying again");
                std::thread::sleep(pause(attempt));
                attempt += 1;
            }
            other => return other,
        }
    }
}
