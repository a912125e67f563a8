//! Saving: each rank its file, then the manifest, then the name.
//!
//! The order is what makes a crash at any moment harmless: files written and synced under a temporary directory name;
//! manifest written and synced; directory synced; renamed; parent synced. Until the rename nobody sees the directory.

use super::direct;
use super::disk::{self, directory, file_name};
use super::file::FileWriter;
use super::lustre::Stripes;
use super::manifest::{self, FileTable, Manifest};
use super::map::Spec;
use super::meta::{Meta, Piece, Saved};
use super::recycle;
use super::team::Team;
use crate::appended::{gone, is_gone};
use crate::error::{Error, Exit, Result};
use crate::progress::Meter;
use crate::world::World;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

/// Saves the pieces of all ranks as `checkpoints/step-NNNNNNNN`, replacing one of the same step. Collective.
///
/// The pieces of all ranks together hold each tensor exactly once. `meta` is rank 0's. An error on any rank is returned on
/// every rank (the filesystem's refusals as [`Exit::Storage`]); then nothing is left behind, and older checkpoints are as
/// they were.
pub fn save(checkpoints: &Path, pieces: &[Piece], meta: &Meta, world: &World) -> Result<Saved> {
    let specs = pieces.iter().map(Spec::of).collect();
    save_with(checkpoints, specs, meta, Team(Some(world)), &mut |file| append_all(file, pieces))
}

/// How the ranks share a filesystem.
#[derive(Clone)]
pub struct Rules {
    /// Striping of the checkpoint's directory where that is on Lustre; nothing elsewhere.
    pub stripes: Stripes,
    /// When this rank writes its file: turns go one after the other.
    pub turn: usize,
    /// Turns in all, the same on every rank; at least 1.
    pub turns: usize,
    /// Asked on rank 0 right before the new checkpoint takes its name: an error leaves everything as it was.
    pub fence: Arc<dyn Fn() -> Result<()> + Send + Sync>,
    /// Whether the data goes around the page cache on any filesystem that lets it, not only where that is faster: it is less
    /// work for the cores.
    pub direct: bool,
    /// Whether the folder that holds `checkpoints` must be there: a run directory that is gone is not made again.
    pub in_run: bool,
    /// Counts the bytes that a flush writes on this rank.
    pub meter: Meter,
}

impl Default for Rules {
    fn default() -> Self {
        Rules {
            stripes: Stripes::default(),
            turn: 0,
            turns: 1,
            fence: Arc::new(|| Ok(())),
            direct: false,
            in_run: false,
            meter: Meter::default(),
        }
    }
}

fn append_all(file: &mut FileWriter, pieces: &[Piece]) -> Result<()> {
    pieces.iter().enumerate().try_for_each(|(i, p)| file.append(i, p.data))
}

/// As [`save`], for a process that belongs to no world.
#[cfg(test)]
pub fn save_alone(checkpoints: &Path, pieces: &[Piece], meta: &Meta) -> Result<Saved> {
    let specs = pieces.iter().map(Spec::of).collect();
    save_with(checkpoints, specs, meta, Team(None), &mut |file| append_all(file, pieces))
}

/// As [`save`], for data that is not in memory: `fill` appends every dataset of `specs` to the file it is given.
pub fn save_with(
    checkpoints: &Path, specs: Vec<Spec>, meta: &Meta, team: Team, fill: &mut dyn FnMut(&mut FileWriter) -> Result<()>,
) -> Result<Saved> {
    save_by(&Rules::default(), checkpoints, specs, meta, team, fill)
}

/// As [`save_with`], under `rules`.
pub fn save_by(
    rules: &Rules, checkpoints: &Path, specs: Vec<Spec>, meta: &Meta, team: Team,
    fill: &mut dyn FnMut(&mut FileWriter) -> Result<()>,
) -> Result<Saved> {
    let start = Instant::now();
    let names = Names::new(checkpoints, meta);
    let result = write_all(rules, &names, specs, meta, team, fill);
    match result {
        Ok(bytes) => Ok(Saved { path: names.target, bytes, seconds: start.elapsed().as_secs_f64() }),
        Err(e) if team.rank() != 0 => Err(e),
        Err(e) => Err(match disk::remove_dir(&names.temporary) {
            Ok(()) => e,
            Err(left) => Error { fact: format!("{}; {}", e.fact, left.fact), ..e },
        }),
    }
}

/// Names under which the checkpoint of a step lives while it is saved.
struct Names {
    checkpoints: PathBuf,
    target: PathBuf,
    temporary: PathBuf,
    aside: PathBuf,
}

impl Names {
    fn new(checkpoints: &Path, meta: &Meta) -> Names {
        let step = directory(meta.step);
        Names {
            checkpoints: checkpoints.into(),
            temporary: checkpoints.join(format!("{step}.tmp-{}", meta.attempt)),
            aside: checkpoints.join(format!("{step}.old-{}", meta.attempt)),
            target: checkpoints.join(step),
        }
    }
}

fn write_all(
    rules: &Rules, names: &Names, specs: Vec<Spec>, meta: &Meta, team: Team,
    fill: &mut dyn FnMut(&mut FileWriter) -> Result<()>,
) -> Result<u64> {
    team.agree(if team.rank() == 0 { prepare(names, rules, team.size()) } else { Ok(()) })?;
    let (mut specs, mut table) = (Some(specs), Ok(FileTable::default()));
    for turn in 0..rules.turns {
        if let Some(specs) = specs.take_if(|_| turn == rules.turn) {
            table = write_file(names, rules, specs, meta, team.rank(), fill);
        }
        if turn + 1 < rules.turns {
            team.barrier()?;
        }
    }
    let table = team.agree(table)?;
    let packed = serde_json::to_vec(&table).map_err(|e| Error::new(Exit::Internal, format!("file table: {e}")));
    let tables = team.gather(team.agree(packed)?)?;
    team.agree(match tables {
        Some(tables) => commit(names, rules, meta, tables),
        None => Ok(0),
    })
    .and_then(|bytes| {
        let bytes = team.broadcast(bytes.to_le_bytes().to_vec())?;
        Ok(u64::from_le_bytes(bytes.try_into().unwrap_or_default()))
    })
}

fn prepare(names: &Names, rules: &Rules, ranks: usize) -> Result<()> {
    let Names { checkpoints, temporary, .. } = names;
    // made again, it might lie on another filesystem
    let dir = checkpoints.parent().filter(|dir| !dir.as_os_str().is_empty());
    if let Some(dir) = dir.filter(|dir| rules.in_run && is_gone(dir)) {
        return Err(gone(dir));
    }
    std::fs::create_dir_all(checkpoints).map_err(disk::refused(checkpoints, "create"))?;
    // Of this step and this attempt: a save that was killed.
    disk::remove_dir(temporary)?;
    if recycle::take(checkpoints, temporary, ranks)? {
        return Ok(());
    }
    std::fs::create_dir(temporary).map_err(disk::refused(temporary, "create"))?;
    rules.stripes.apply(temporary)
}

fn write_file(
    names: &Names, rules: &Rules, specs: Vec<Spec>, meta: &Meta, rank: usize,
    fill: &mut dyn FnMut(&mut FileWriter) -> Result<()>,
) -> Result<FileTable> {
    let text = serde_json::to_string(meta)
        .map_err(|e| Error::new(Exit::Internal, format!("the checkpoint's description cannot be written: {e}")))?;
    let mut file = FileWriter::create(&names.temporary.join(file_name(rank)), specs, &text)?;
    if rules.direct || direct::on_local_disk(&names.temporary) {
        file.go_direct()?;
    }
    fill(&mut file)?;
    file.finish()
}

/// Rank 0: manifest, sync, rename, sync. Returns the bytes of the whole checkpoint.
fn commit(names: &Names, rules: &Rules, meta: &Meta, tables: Vec<Vec<u8>>) -> Result<u64> {
    let tables: Vec<FileTable> = tables
        .iter()
        .map(|t| serde_json::from_slice(t))
        .collect::<std::result::Result<_, _>>()
        .map_err(|e| Error::new(Exit::Internal, format!("a rank's file table cannot be read: {e}")))?;
    let manifest = Manifest::new(meta.clone(), tables)?;
    let bytes = manifest.to_bytes()?;
    disk::write_synced(&names.temporary.join(manifest::NAME), &bytes)?;
    disk::sync_dir(&names.temporary)?;
    (rules.fence)()?;
    disk::replace(&names.temporary, &names.target, &names.aside)?;
    disk::sync_dir(&names.checkpoints)?;
    // What stood under this name before. Readers ignore it, and `prune` takes what cannot be removed now.
    let _ = disk::remove_dir(&names.temporary);
    let _ = disk::remove_dir(&names.aside);
    Ok(manifest.files.iter().map(|f| f.size).sum::<u64>() + bytes.len() as u64)
}
