//! Reading: any rectangle and flat range of any tensor, and the check of every byte.

use crate::checkpoint::manifest::{self, Dataset, FileEntry, Manifest, TensorEntry};
use crate::checkpoint::meta::{hex, Group, Meta};
use crate::checkpoint::slice::{copy_runs, cover, runs, Slice};
use crate::error::{Error, Exit, Result};
use crate::kernels::sum::Sum;
use crate::progress::Meter;
use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Bytes read at a time for checksums: they are summed while they wait in the second-level cache.
const BLOCK: usize = 256 << 10;

/// A committed checkpoint. Opening it reads the manifest and checks that every file has its size.
pub struct Checkpoint {
    path: PathBuf,
    manifest: Manifest,
    index: HashMap<(Group, String), Stored>,
}

/// A tensor's number in the manifest, and its slices as numbers of file and dataset.
type Stored = (usize, Vec<(usize, usize)>);

/// Bytes that are read before their pages leave the cache.
const BEHIND: u64 = 4 << 20;

/// What [`Checkpoint::verify`] found out about one file.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct FileReport {
    /// Name in the step directory, without a path.
    pub name: String,
    /// Size that the manifest says it has.
    pub bytes: u64,
    /// Absent when every byte is as it was written.
    pub problem: Option<String>,
}

/// What reading has found out about a checkpoint on the way.
#[derive(Debug, Default)]
pub(crate) struct Compared {
    /// Datasets of which every byte was read and is as it was written, as numbers of file and dataset.
    whole: HashSet<(usize, usize)>,
    /// The first one that is not, or cannot be read.
    pub problem: Option<String>,
    /// Counts the bytes read for it.
    pub meter: Meter,
    /// The file that was read last, by number: a rank's slices lie in few.
    last: Option<(usize, Arc<File>)>,
}

impl Compared {
    /// Nothing yet; `meter` counts what is read.
    pub fn counting(meter: &Meter) -> Compared {
        Compared { meter: meter.clone(), ..Compared::default() }
    }

    fn file(&mut self, number: usize, path: &Path) -> std::io::Result<Arc<File>> {
        match &self.last {
            Some((last, file)) if *last == number => Ok(file.clone()),
            _ => Ok(self.last.insert((number, Arc::new(File::open(path)?))).1.clone()),
        }
    }
}

impl Checkpoint {
    /// Opens `path`, a step directory. Errors: [`Exit::Checkpoint`] when it is no valid checkpoint.
    pub fn open(path: &Path) -> Result<Checkpoint> {
        let c = Checkpoint::from_manifest(path, &manifest_bytes(path)?)?;
        let problem = c.files().find_map(|f| c.size_problem(f));
        match problem {
            Some(problem) => Err(Error::new(Exit::Checkpoint, format!("{}: {problem}", path.display()))),
            None => Ok(c),
        }
    }

    /// From the bytes of its manifest, without a look at the files.
    pub fn from_manifest(path: &Path, bytes: &[u8]) -> Result<Checkpoint> {
        let manifest = Manifest::parse(bytes, &path.join(manifest::NAME))?;
        let mut index = HashMap::new();
        for (t, tensor) in manifest.tensors.iter().enumerate() {
            index.insert((tensor.group, tensor.name.clone()), (t, Vec::new()));
        }
        for (f, file) in manifest.files.iter().enumerate() {
            for (d, dataset) in file.datasets.iter().enumerate() {
                let tensor = &manifest.tensors[dataset.tensor];
                if let Some((_, slices)) = index.get_mut(&(tensor.group, tensor.name.clone())) {
                    slices.push((f, d));
                }
            }
        }
        Ok(Checkpoint { path: path.into(), manifest, index })
    }

    /// The step directory, as it was opened.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What it says about its run.
    pub fn meta(&self) -> &Meta {
        &self.manifest.meta
    }

    /// When it was written, RFC 3339.
    pub fn written(&self) -> &str {
        &self.manifest.written
    }

    /// Bytes of data files.
    pub fn bytes(&self) -> u64 {
        self.files().map(|f| f.size).sum()
    }

    /// Group, global name and global shape of each stored tensor, in order of the manifest.
    pub fn tensors(&self) -> impl Iterator<Item = (Group, &str, &[usize])> {
        self.manifest.tensors.iter().map(|t| (t.group, t.name.as_str(), t.shape.as_slice()))
    }

    /// Shape of a stored tensor.
    pub fn shape(&self, group: Group, name: &str) -> Option<&[usize]> {
        let (t, _) = self.index.get(&(group, name.to_string()))?;
        Some(&self.manifest.tensors[*t].shape)
    }

    /// Whether any tensor of the group is stored. An import has no moments: they are zero.
    pub fn has(&self, group: Group) -> bool {
        self.manifest.tensors.iter().any(|t| t.group == group)
    }

    /// Names of the data files with their sizes.
    pub fn file_names(&self) -> impl Iterator<Item = (&str, u64)> {
        self.files().map(|f| (f.name.as_str(), f.size))
    }

    pub(crate) fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    pub(crate) fn files(&self) -> impl ExactSizeIterator<Item = &FileEntry> {
        self.manifest.files.iter()
    }

    /// Reads elements `[start, start + out.len())` of the rectangle (`offset`, `extent`) of a tensor. Reads only the
    /// slices that hold some of them. A moment that is not stored at all is zero.
    ///
    /// Errors: [`Exit::Checkpoint`] when the tensor is absent, the request passes its shape, or a file cannot be read.
    pub fn read(
        &self, group: Group, name: &str, offset: &[usize], extent: &[usize], start: usize, out: &mut [f32],
    ) -> Result<()> {
        self.read_into(group, name, offset, extent, start, out, None)
    }

    /// As [`Checkpoint::read`], for a restore: what is read of a dataset as a whole is compared with its checksum in passing,
    /// and leaves the page cache.
    #[allow(clippy::too_many_arguments)]
    pub(crate) fn read_comparing(
        &self, group: Group, name: &str, offset: &[usize], extent: &[usize], start: usize, out: &mut [f32],
        compared: &mut Compared,
    ) -> Result<()> {
        self.read_into(group, name, offset, extent, start, out, Some(compared))
    }

    #[allow(clippy::too_many_arguments)]
    fn read_into(
        &self, group: Group, name: &str, offset: &[usize], extent: &[usize], start: usize, out: &mut [f32],
        mut compared: Option<&mut Compared>,
    ) -> Result<()> {
        let broken =
            |why: String| Error::new(Exit::Checkpoint, format!("{}: {group} {name}: {why}", self.path.display()));
        let Some((t, slices)) = self.index.get(&(group, name.to_string())) else {
            if group != Group::Param && !self.has(group) {
                out.fill(0.0);
                return Ok(());
            }
            return Err(broken("no such tensor is stored".into()));
        };
        let shape = &self.manifest.tensors[*t].shape;
        let want = Slice { offset: offset.into(), extent: extent.into(), start, len: out.len(), ..Slice::whole(shape) };
        if let Some(why) = want.fault() {
            return Err(broken(why));
        }
        let mut filled = Vec::new();
        for &(f, d) in slices {
            let file = &self.manifest.files[f];
            let dataset = &file.datasets[d];
            let found = runs(&dataset.span(shape), &want);
            if found.is_empty() {
                continue;
            }
            let path = self.path.join(&file.name);
            let whole = matches!(found[..], [r] if r.from == 0 && r.len == dataset.len) && compared.is_some();
            let opened = match &mut compared {
                Some(c) => c.file(f, &path),
                None => File::open(&path).map(Arc::new),
            };
            let copy = || -> std::io::Result<Option<String>> {
                let from = opened?;
                if whole {
                    let to = found[0].to;
                    let sum = read_summing(&from, dataset.at, &mut out[to..to + dataset.len])?;
                    return Ok(self.differs(&file.name, dataset, sum));
                }
                copy_runs(&found, out, |at, part| {
                    from.read_exact_at(bytemuck::cast_slice_mut(part), dataset.at + 4 * at as u64)
                })?;
                Ok(None)
            };
            let damaged = match copy() {
                Ok(problem) => problem.map(|p| Error::new(Exit::Checkpoint, format!("{}: {p}", self.path.display()))),
                Err(e) => Some(Error::io(&path, "read", &e, Exit::Checkpoint)),
            };
            if let Some(c) = &mut compared {
                c.problem = damaged.as_ref().map(|e| e.fact.clone());
                if whole && damaged.is_none() {
                    c.whole.insert((f, d));
                }
            }
            if let Some(e) = damaged {
                return Err(e);
            }
            filled.extend(found.iter().map(|r| (r.to, r.to + r.len)));
        }
        match cover(filled, out.len()) {
            true => Ok(()),
            false => Err(broken(format!("not every element of offset {offset:?}, extent {extent:?} is stored"))),
        }
    }

    /// Reads every byte of every file and compares its checksums.
    pub fn verify(&self) -> Vec<FileReport> {
        self.verify_metered(&Meter::default())
    }

    /// As [`Checkpoint::verify`]; `meter` counts [`Checkpoint::bytes`] in all, also where a file is not read to its end.
    pub fn verify_metered(&self, meter: &Meter) -> Vec<FileReport> {
        let none = Compared::counting(meter);
        let report = |(i, f): (usize, &FileEntry)| {
            let before = meter.done();
            let problem = self.problem(i, &none);
            meter.add(f.size.saturating_sub(meter.done() - before));
            FileReport { name: f.name.clone(), bytes: f.size, problem }
        };
        self.files().enumerate().map(report).collect()
    }

    /// What is wrong with file number `i`, if anything. What `compared` has is not read again.
    pub(crate) fn problem(&self, i: usize, compared: &Compared) -> Option<String> {
        self.size_problem(&self.manifest.files[i]).or_else(|| self.sum_problem(i, compared, &|_| true, true))
    }

    pub(crate) fn size_problem(&self, file: &FileEntry) -> Option<String> {
        match std::fs::metadata(self.path.join(&file.name)) {
            Ok(m) if m.len() == file.size => None,
            Ok(m) => Some(format!("{} has {} bytes, the manifest says {}", file.name, m.len(), file.size)),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Some(format!("{} is missing", file.name)),
            Err(e) => Some(format!("{} cannot be looked at: {e}", file.name)),
        }
    }

    /// Compares the datasets of file `i` that `pick` takes by their numbers, and the bytes outside all of them if `rest`.
    pub(crate) fn sum_problem(
        &self, i: usize, compared: &Compared, pick: &dyn Fn(usize) -> bool, rest: bool,
    ) -> Option<String> {
        let file = &self.manifest.files[i];
        let due = |d: &usize| pick(*d) && !compared.whole.contains(&(i, *d));
        let due: Vec<usize> = (0..file.datasets.len()).filter(due).collect();
        if due.is_empty() && !rest {
            return None;
        }
        let check = || -> std::io::Result<Option<String>> {
            let f = File::open(self.path.join(&file.name))?;
            let mut buffer = vec![0; BLOCK];
            for d in due.iter().map(|&d| &file.datasets[d]) {
                let mut sum = Sum::default();
                add(&mut sum, &f, d.at, d.end(), &mut buffer, &compared.meter)?;
                if let Some(problem) = self.differs(&file.name, d, sum.digest()) {
                    return Ok(Some(problem));
                }
            }
            if !rest {
                return Ok(None);
            }
            let mut sum = Sum::default();
            for (from, to) in file.gaps() {
                add(&mut sum, &f, from, to, &mut buffer, &compared.meter)?;
            }
            let (is, was) = (hex(sum.digest()), hex(file.rest));
            Ok((is != was)
                .then(|| format!("{}: HDF5 structures have checksum {is}, it was {was} when written", file.name)))
        };
        check().unwrap_or_else(|e| Some(format!("{} cannot be read: {e}", file.name)))
    }

    fn differs(&self, file: &str, d: &Dataset, sum: u64) -> Option<String> {
        let TensorEntry { group, name, .. } = &self.manifest.tensors[d.tensor];
        let (is, was) = (hex(sum), hex(d.xxh3));
        (sum != d.xxh3).then(|| format!("{file}: {group} {name} has checksum {is}, it was {was} when written"))
    }
}

/// The manifest of the step directory `path`.
pub(crate) fn manifest_bytes(path: &Path) -> Result<Vec<u8>> {
    let manifest = path.join(manifest::NAME);
    std::fs::read(&manifest).map_err(|e| match e.kind() {
        std::io::ErrorKind::NotFound => {
            Error::new(Exit::Checkpoint, format!("{} has no {}", path.display(), manifest::NAME))
                .hint("give a step-NNNNNNNN directory whose save was finished")
        }
        _ => Error::io(&manifest, "read", &e, Exit::Checkpoint),
    })
}

/// Reads elements into their place and returns the checksum of their bytes. What was read leaves the page cache at once:
/// nobody reads it again soon, and its pages serve for what is read next.
fn read_summing(file: &File, from: u64, out: &mut [f32]) -> std::io::Result<u64> {
    let mut sum = Sum::default();
    let (mut at, mut kept, end) = (from, from, from + 4 * out.len() as u64);
    for part in out.chunks_mut(BLOCK / 4) {
        let bytes: &mut [u8] = bytemuck::cast_slice_mut(part);
        file.read_exact_at(bytes, at)?;
        sum.update(bytes);
        at += bytes.len() as u64;
        if at - kept >= BEHIND || at == end {
            forget(file, kept, at);
            kept = at;
        }
    }
    Ok(sum.digest())
}

/// Advice: where it is not taken, memory fills up with pages that are of no use.
fn forget(file: &File, from: u64, to: u64) {
    let _ = rustix::fs::fadvise(file, from, std::num::NonZeroU64::new(to - from), rustix::fs::Advice::DontNeed);
}

fn add(sum: &mut Sum, file: &File, mut from: u64, to: u64, buffer: &mut [u8], meter: &Meter) -> std::io::Result<()> {
    while from < to {
        let n = buffer.len().min((to - from) as usize);
        file.read_exact_at(&mut buffer[..n], from)?;
        sum.update(&buffer[..n]);
        meter.add(n as u64);
        from += n as u64;
    }
    Ok(())
}
