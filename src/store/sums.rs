//! The checksums of one file of a checkpoint, from its bytes in order: for data that passes by once, on its way to or
//! from an object store.

use crate::checkpoint::manifest::{FileEntry, Manifest};
use crate::checkpoint::meta::hex;
use xxhash_rust::xxh3::Xxh3;

/// Feed it the file's bytes from first to last.
pub struct FileChecksums<'a> {
    manifest: &'a Manifest,
    file: &'a FileEntry,
    /// First byte, end, and number of the dataset (none: HDF5's structures and padding), without gap or overlap.
    segments: Vec<(u64, u64, Option<usize>)>,
    segment: usize,
    at: u64,
    rest: Xxh3,
    data: Xxh3,
    problem: Option<String>,
}

impl<'a> FileChecksums<'a> {
    pub fn new(manifest: &'a Manifest, file: &'a FileEntry) -> FileChecksums<'a> {
        let mut segments: Vec<_> = file.gaps().into_iter().map(|(from, to)| (from, to, None)).collect();
        segments.extend(file.datasets.iter().enumerate().map(|(i, d)| (d.at, d.end(), Some(i))));
        segments.retain(|(from, to, _)| from < to);
        segments.sort_unstable();
        let overlap = segments.windows(2).any(|w| w[0].1 != w[1].0);
        let problem = overlap.then(|| format!("{}: the manifest lists datasets that overlap", file.name));
        FileChecksums { manifest, file, segments, segment: 0, at: 0, rest: Xxh3::new(), data: Xxh3::new(), problem }
    }

    pub fn feed(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let Some(&(_, end, dataset)) = self.segments.get(self.segment) else {
                self.at += bytes.len() as u64;
                return;
            };
            let n = bytes.len().min((end - self.at) as usize);
            match dataset {
                Some(_) => self.data.update(&bytes[..n]),
                None => self.rest.update(&bytes[..n]),
            }
            self.at += n as u64;
            bytes = &bytes[n..];
            if self.at == end {
                if let Some(i) = dataset {
                    self.close(i);
                }
                self.segment += 1;
            }
        }
    }

    fn close(&mut self, dataset: usize) {
        let (d, is) = (&self.file.datasets[dataset], self.data.digest());
        self.data.reset();
        if is != d.xxh3 && self.problem.is_none() {
            let t = &self.manifest.tensors[d.tensor];
            self.problem = Some(format!(
                "{}: {} {} has checksum {}, it was {} when written",
                self.file.name,
                t.group,
                t.name,
                hex(is),
                hex(d.xxh3)
            ));
        }
    }

    /// What is wrong with the file, if anything.
    pub fn finish(self) -> Option<String> {
        let (name, size, rest) = (&self.file.name, self.file.size, self.rest.digest());
        if self.at != size {
            return Some(format!("{name} has {} bytes, the manifest says {size}", self.at));
        }
        self.problem.or_else(|| {
            (rest != self.file.rest).then(|| {
                format!(
                    "{name}: HDF5 structures have checksum {}, it was {} when written",
                    hex(rest),
                    hex(self.file.rest)
                )
            })
        })
    }
}
