//! Where a run's snapshots lie on a node, and what is found there.
//!
//! `<snapshot_dir>/herd-<uid>/<hash of the run directory>/`, with the files `rank-NNNNN.N` (this node's own) and
//! `partner-of-NNNNN.N` (copies for other ranks: of another node, unless the configuration names a rank). A run that was removed and begun anew under the same path has
//! another identity ([`run_id`]), and what its predecessor left is not its own.

use crate::checkpoint::disk::{self, refused};
use crate::error::{Error, Exit, Result};
use crate::run_dir::RunDir;
use crate::tiers::snapshot::slot::{locked, Header};
use std::fs::File;
use std::io::Read;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use xxhash_rust::xxh3::xxh3_64;

/// Directory of a run's snapshots on this node.
#[derive(Clone, Debug, PartialEq)]
pub struct SnapshotDir {
    /// The directory itself, which need not exist.
    pub dir: PathBuf,
    /// The run's identity ([`run_id`]).
    pub run: u64,
}

/// A snapshot whose header is whole. Its content has not been looked at.
#[derive(Clone, Debug)]
pub struct FoundSnapshot {
    /// Its file on this node.
    pub path: PathBuf,
    /// Copy for another rank.
    pub partner: bool,
    /// Its first page, of the run that was asked for.
    pub header: Header,
}

/// Snapshots of another run of this user that no living process holds.
#[derive(Clone, Debug, PartialEq)]
pub struct Leftover {
    /// Directory of that run's snapshots on this node.
    pub dir: PathBuf,
    /// Bytes of all files in it.
    pub bytes: u64,
}

impl SnapshotDir {
    /// Of the run in `run_dir`, which exists. Touches nothing.
    pub fn of(snapshot_dir: &Path, run_dir: &Path, run: u64) -> Result<SnapshotDir> {
        let real = run_dir.canonicalize().map_err(|e| Error::io(run_dir, "find", &e, Exit::Storage))?;
        let hash = xxh3_64(real.as_os_str().as_encoded_bytes());
        Ok(SnapshotDir { dir: home(snapshot_dir).join(format!("{hash:016x}")), run })
    }

    /// Makes the directory. Errors: [`Exit::Storage`], also where another user has taken its name.
    pub fn create(&self) -> Result<()> {
        let home = self.dir.parent().unwrap_or(&self.dir);
        for dir in [home, &self.dir] {
            std::fs::DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(dir)
                .map_err(refused(dir, "make a directory for snapshots at"))?;
        }
        let found = std::fs::symlink_metadata(home).map_err(refused(home, "look at"))?;
        if !found.is_dir() || found.uid() != uid() {
            let fact = format!("{} belongs to user {}, not to {}", home.display(), found.uid(), uid());
            return Err(Error::new(Exit::Storage, fact).hint("set checkpoint.snapshot_dir to a directory of your own"));
        }
        Ok(())
    }

    /// File of world rank `rank`'s own snapshot in its slot `slot`, counted from 0.
    pub fn own(&self, rank: usize, slot: usize) -> PathBuf {
        self.dir.join(format!("rank-{rank:05}.{slot}"))
    }

    /// File of the second copy of world rank `rank`'s snapshot; `slot` is 0 or 1.
    pub fn partner_of(&self, rank: usize, slot: usize) -> PathBuf {
        self.dir.join(format!("partner-of-{rank:05}.{slot}"))
    }

    /// This run's snapshots with whole headers; none where there is no directory.
    pub fn scan(&self) -> Result<Vec<FoundSnapshot>> {
        let mut found = Vec::new();
        for path in files(&self.dir)? {
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let partner = name.starts_with("partner-of-");
            if !partner && !name.starts_with("rank-") {
                continue;
            }
            if let Some(header) = header(&path).filter(|h| h.run == self.run) {
                found.push(FoundSnapshot { path, partner, header });
            }
        }
        Ok(found)
    }

    /// Removes what no living process holds, but for files that `keep` names.
    pub fn clean(&self, keep: &dyn Fn(&Path) -> bool) -> Result<()> {
        for path in files(&self.dir)? {
            if !keep(&path) && !held(&path) {
                std::fs::remove_file(&path).map_err(refused(&path, "remove"))?;
            }
        }
        Ok(())
    }

    /// Removes everything.
    pub fn remove(&self) -> Result<()> {
        disk::remove_dir(&self.dir)?;
        // The last run of this user takes the user's directory along.
        let _ = self.dir.parent().map(std::fs::remove_dir);
        Ok(())
    }

    /// Removes the directory if nothing is in it.
    pub fn remove_if_empty(&self) -> Result<()> {
        if files(&self.dir)?.is_empty() {
            self.remove()?;
        }
        Ok(())
    }

    /// What other runs of this user have left here.
    pub fn leftovers(&self) -> Result<Vec<Leftover>> {
        let mut left = Vec::new();
        for dir in files(self.dir.parent().unwrap_or(&self.dir))?.into_iter().filter(|d| *d != self.dir) {
            let files = files(&dir)?;
            let bytes = files.iter().filter_map(|f| f.metadata().ok()).map(|m| m.len()).sum();
            if bytes > 0 && !files.iter().any(|f| held(f)) {
                left.push(Leftover { dir, bytes });
            }
        }
        Ok(left)
    }

    /// Free bytes of the filesystem.
    pub fn free(&self) -> Result<u64> {
        let s = rustix::fs::statvfs(&self.dir).map_err(|e| refused(&self.dir, "look at")(e.into()))?;
        Ok(s.f_bavail * s.f_frsize)
    }
}

/// Directory of all snapshots of this user.
pub fn home(snapshot_dir: &Path) -> PathBuf {
    snapshot_dir.join(format!("herd-{}", uid()))
}

fn uid() -> u32 {
    rustix::process::getuid().as_raw()
}

fn header(path: &Path) -> Option<Header> {
    let mut file = File::open(path).ok()?;
    let mut bytes = [0; std::mem::size_of::<Header>()];
    file.read_exact(&mut bytes).ok()?;
    Header::parse(&bytes, file.metadata().ok()?.len())
}

/// Whether a living process holds the slot.
fn held(path: &Path) -> bool {
    File::open(path).is_ok_and(|f| locked(&f))
}

/// Entries of a directory; none where it does not exist.
fn files(dir: &Path) -> Result<Vec<PathBuf>> {
    crate::checkpoint::disk::entries(dir)
}

/// The identity of the run in `run_dir`: a random number in the file `run-id`, made at its first start.
pub fn run_id(run_dir: &Path) -> Result<u64> {
    if let Some(id) = known_run_id(run_dir)? {
        return Ok(id);
    }
    let id = random()?;
    disk::write_atomic(&RunDir::new(run_dir).run_id(), format!("{id:016x}\n").as_bytes())?;
    Ok(id)
}

/// [`run_id`] of a run that has one.
pub fn known_run_id(run_dir: &Path) -> Result<Option<u64>> {
    let path = RunDir::new(run_dir).run_id();
    match std::fs::read_to_string(&path) {
        Ok(text) => u64::from_str_radix(text.trim(), 16).map(Some).map_err(|_| {
            Error::new(Exit::Storage, format!("{} does not hold 16 hexadecimal digits", path.display()))
                .hint("remove it: the run then takes no snapshot from before")
        }),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(Error::io(&path, "read", &e, Exit::Storage)),
    }
}

/// A number nobody else has.
pub fn random() -> Result<u64> {
    let path = Path::new("/dev/urandom");
    let mut bytes = [0; 8];
    let read = File::open(path).and_then(|mut f| f.read_exact(&mut bytes));
    read.map_err(|e| Error::io(path, "read", &e, Exit::Internal))?;
    Ok(u64::from_le_bytes(bytes))
}
