//! Writing one file of a checkpoint: HDF5's map in memory, the data straight to disk in large aligned writes, each block
//! summed while it is in cache.

use super::direct::Direct;
use super::disk::{check_size_limit, refused};
use super::manifest::{Dataset, FileTable, TensorEntry};
use super::map::{Map, Spec, ALIGNMENT};
use crate::error::{Error, Exit, Result};
use crate::kernels::sum::Sum;
use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// Elements per write: large enough for any filesystem, small enough to be summed and copied from cache.
const BLOCK: usize = 1 << 20;
/// After this many bytes the disk is told to begin, so that it works while the rest is summed and copied.
const EARLY: u64 = 16 << 20;

/// A file being written. Dropping it leaves an incomplete file, which no manifest names.
pub struct FileWriter {
    path: PathBuf,
    file: File,
    map: Map,
    specs: Vec<Spec>,
    sums: Vec<Sum>,
    written: Vec<usize>,
    direct: Option<Direct>,
    /// Bytes given to the page cache since the disk was last asked to take them.
    cached: u64,
}

impl FileWriter {
    /// Starts the file `path`, which will hold `specs`; `meta` (JSON) goes with it for whoever finds the file alone. What is
    /// there is written over, to the last byte.
    pub fn create(path: &Path, specs: Vec<Spec>, meta: &str) -> Result<FileWriter> {
        if let Some((spec, fault)) = specs.iter().find_map(|s| s.span.fault().map(|f| (s, f))) {
            return Err(Error::new(Exit::Internal, format!("{} {} cannot be saved: {fault}", spec.group, spec.name)));
        }
        // Data with its alignment, and a generous kilobyte-scale allowance for HDF5's own structures.
        let need: u64 =
            specs.iter().map(|s| 4 * s.span.len as u64 + ALIGNMENT + 4096).sum::<u64>() + meta.len() as u64 + 65536;
        check_size_limit(path, need)?;
        let map = Map::new(&specs, meta)?;
        let opened = File::options().write(true).create(true).truncate(false).open(path);
        let file = opened.map_err(refused(path, "create"))?;
        let sums = specs.iter().map(|_| Sum::default()).collect();
        Ok(FileWriter {
            path: path.into(),
            file,
            map,
            sums,
            written: vec![0; specs.len()],
            specs,
            direct: None,
            cached: 0,
        })
    }

    /// From now on data goes around the page cache, where the filesystem lets it.
    pub fn go_direct(&mut self) -> Result<()> {
        self.direct = Direct::open(&self.path).map_err(refused(&self.path, "write"))?;
        Ok(())
    }

    /// Writes the next elements of dataset `i`.
    pub fn append(&mut self, i: usize, data: &[f32]) -> Result<()> {
        let spec = &self.specs[i];
        if self.written[i] + data.len() > spec.span.len {
            let (n, len) = (self.written[i] + data.len(), spec.span.len);
            return Err(Error::new(Exit::Internal, format!("{} {} got {n} of {len} elements", spec.group, spec.name)));
        }
        for block in data.chunks(BLOCK) {
            let bytes: &[u8] = bytemuck::cast_slice(block);
            let at = self.map.at[i] + 4 * self.written[i] as u64;
            let done = match &mut self.direct {
                Some(direct) => direct.write(bytes, at, &mut self.sums[i]).map_err(refused(&self.path, "write"))?,
                None => 0,
            };
            let (rest, at) = (&bytes[done..], at + done as u64);
            self.sums[i].update(rest);
            self.file.write_all_at(rest, at).map_err(refused(&self.path, "write"))?;
            self.cached += rest.len() as u64;
            if self.cached >= EARLY {
                start_writeback(&self.file);
                self.cached = 0;
            }
            self.written[i] += block.len();
        }
        Ok(())
    }

    /// Writes HDF5's own bytes around the data, syncs and closes.
    pub fn finish(self) -> Result<FileTable> {
        let FileWriter { path, file, map, specs, sums, written, direct, .. } = self;
        direct.map_or(Ok(()), Direct::finish).map_err(refused(&path, "write"))?;
        if let Some((i, spec)) = specs.iter().enumerate().find(|(i, s)| written[*i] != s.span.len) {
            let (n, len) = (written[i], spec.span.len);
            return Err(Error::new(Exit::Internal, format!("{} {} got {n} of {len} elements", spec.group, spec.name)));
        }
        let sums: Vec<u64> = sums.iter().map(|s| s.digest()).collect();
        let mut table = FileTable::default();
        for (i, spec) in specs.into_iter().enumerate().filter(|(_, s)| s.span.len > 0) {
            let dataset = Dataset {
                tensor: table.tensor(TensorEntry { group: spec.group, name: spec.name, shape: spec.span.shape }),
                offset: spec.span.offset,
                extent: spec.span.extent,
                start: spec.span.start,
                len: spec.span.len,
                at: map.at[i],
                xxh3: sums[i],
            };
            table.file.datasets.push(dataset);
        }
        let (image, size) = map.finish(&sums)?;
        table.file.size = size;
        table.file.name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let mut sum = Sum::default();
        let mut buffer = Vec::new();
        for (from, to) in table.file.gaps() {
            buffer.resize((to - from) as usize, 0);
            image.read_exact_at(&mut buffer, from).map_err(refused(&path, "lay out"))?;
            sum.update(&buffer);
            file.write_all_at(&buffer, from).map_err(refused(&path, "write"))?;
        }
        table.file.rest = sum.digest();
        // A dataset at the very end may reach further than the last byte written here.
        file.set_len(size).map_err(refused(&path, "write"))?;
        file.sync_all().map_err(refused(&path, "sync"))?;
        Ok(table)
    }
}

/// Has dirty pages written without waiting for them. Advice: the sync at the end is what counts.
fn start_writeback(file: &File) {
    // SAFETY: a plain call on an open descriptor; no memory is passed.
    unsafe { libc::sync_file_range(file.as_raw_fd(), 0, 0, libc::SYNC_FILE_RANGE_WRITE) };
}
