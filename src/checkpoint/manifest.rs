//! `manifest.json`: what run the checkpoint is of, and the table of all files. It is written last; a directory without a
//! valid one is no checkpoint.
//!
//! The file is JSON in three parts: a first line that opens it and holds the checksum, the manifest, and a last line with
//! the closing brace. The checksum covers the bytes between the first and the last line break.

use super::meta::{hex, Group, Meta};
use super::slice::Slice;
use crate::error::{Error, Exit, Result};
use serde::{Deserialize, Serialize};
use std::collections::{HashMap, HashSet};
use std::path::Path;
use xxhash_rust::xxh3::xxh3_64;

/// Version of directory, manifest and files; a reader refuses a larger one.
pub const VERSION: u64 = 1;
/// Value of the `format` attribute in each file.
pub const FORMAT: &str = "herd-checkpoint-1";
/// Name of the manifest's file in a step directory.
pub const NAME: &str = "manifest.json";

/// What `manifest.json` holds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    /// When it was written, RFC 3339.
    #[serde(default)]
    pub written: String,
    /// What the checkpoint says about its run.
    pub meta: Meta,
    /// Every stored tensor once, by group and name.
    pub tensors: Vec<TensorEntry>,
    /// The data files: one for each rank that saved, in rank order.
    pub files: Vec<FileEntry>,
}

/// A tensor of which slices are stored.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct TensorEntry {
    /// Which of the three numbers kept per parameter.
    pub group: Group,
    /// Global name of the parameter.
    pub name: String,
    /// Global shape, at least one dim.
    pub shape: Vec<usize>,
}

/// One data file, and where its datasets lie.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct FileEntry {
    /// Name in the step directory, without a path.
    pub name: String,
    /// Bytes.
    pub size: u64,
    /// Checksum of all bytes that belong to no dataset, in order: HDF5's structures and padding.
    #[serde(with = "hex_sum")]
    pub rest: u64,
    /// The slices stored in it; such of no elements are left out.
    pub datasets: Vec<Dataset>,
}

/// One stored slice.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Dataset {
    /// Index into [`Manifest::tensors`].
    pub tensor: usize,
    /// Global index of the rectangle's first element, on each dim.
    pub offset: Vec<usize>,
    /// Elements of the rectangle, on each dim.
    pub extent: Vec<usize>,
    /// First element that is stored, counted from 0 in row-major order of the rectangle.
    pub start: usize,
    /// Elements.
    pub len: usize,
    /// First byte of its data in the file: little-endian fp32, back to back.
    pub at: u64,
    /// Checksum of its data.
    #[serde(with = "hex_sum")]
    pub xxh3: u64,
}

/// One writer's part of the manifest.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct FileTable {
    /// The tensors of which the file holds slices.
    pub tensors: Vec<TensorEntry>,
    /// The file; its datasets count in `tensors` here, and in [`Manifest::tensors`] once the tables are put together.
    pub file: FileEntry,
}

impl FileTable {
    /// Index of `tensor`, added if new.
    pub fn tensor(&mut self, tensor: TensorEntry) -> usize {
        // Slices of one tensor are saved one after the other, so a look at the end is nearly always enough.
        self.tensors.iter().rposition(|t| *t == tensor).unwrap_or_else(|| {
            self.tensors.push(tensor);
            self.tensors.len() - 1
        })
    }
}

impl TensorEntry {
    /// Number of elements.
    pub fn elements(&self) -> usize {
        self.shape.iter().product()
    }
}

impl Dataset {
    /// First byte behind its data in the file.
    pub fn end(&self) -> u64 {
        self.at + 4 * self.len as u64
    }

    /// The elements it holds of its tensor, which has `shape`.
    pub fn span(&self, shape: &[usize]) -> Slice {
        let (offset, extent) = (self.offset.clone(), self.extent.clone());
        Slice { shape: shape.to_vec(), offset, extent, start: self.start, len: self.len }
    }
}

impl FileEntry {
    /// Byte ranges outside all datasets, in order.
    pub fn gaps(&self) -> Vec<(u64, u64)> {
        let mut data: Vec<(u64, u64)> = self.datasets.iter().map(|d| (d.at, d.end())).collect();
        data.sort_unstable();
        let mut at = 0;
        let mut gaps = Vec::new();
        for (from, to) in data.into_iter().chain([(self.size, self.size)]) {
            if from > at {
                gaps.push((at, from));
            }
            at = at.max(to);
        }
        gaps
    }
}

impl Manifest {
    /// Puts the writers' tables together. The slices of each tensor must add up to the tensor.
    pub fn new(meta: Meta, tables: Vec<FileTable>) -> Result<Manifest> {
        let mut index: HashMap<TensorEntry, usize> = HashMap::new();
        let mut m =
            Manifest { written: jiff::Timestamp::now().to_string(), meta, tensors: Vec::new(), files: Vec::new() };
        let mut held: Vec<usize> = Vec::new();
        for FileTable { tensors, mut file } in tables {
            let global: Vec<usize> = tensors
                .into_iter()
                .map(|t| {
                    *index.entry(t.clone()).or_insert_with(|| {
                        m.tensors.push(t);
                        held.push(0);
                        m.tensors.len() - 1
                    })
                })
                .collect();
            for d in &mut file.datasets {
                d.tensor = global[d.tensor];
                held[d.tensor] += d.len;
            }
            m.files.push(file);
        }
        match m.tensors.iter().zip(&held).find(|(t, &n)| t.elements() != n) {
            Some((t, n)) => Err(Error::new(
                Exit::Internal,
                format!(
                    "the pieces of {} {} hold {n} elements, its shape {:?} holds {}",
                    t.group,
                    t.name,
                    t.shape,
                    t.elements()
                ),
            )),
            None => Ok(m),
        }
    }

    /// The text of `manifest.json`, checksum included.
    pub fn to_bytes(&self) -> Result<Vec<u8>> {
        let body = serde_json::to_string(self)
            .map_err(|e| Error::new(Exit::Internal, format!("the manifest cannot be written: {e}")))?;
        let sum = hex(xxh3_64(body.as_bytes()));
        Ok(format!("{{\"herd_checkpoint\": {VERSION}, \"xxh3\": \"{sum}\", \"manifest\":\n{body}\n}}\n").into_bytes())
    }

    /// `path` is for messages.
    pub fn parse(bytes: &[u8], path: &Path) -> Result<Manifest> {
        let damaged = |why: String| Error::new(Exit::Checkpoint, format!("{} is damaged: {why}", path.display()));
        #[derive(Deserialize)]
        struct Head {
            herd_checkpoint: u64,
            xxh3: String,
        }
        let (head, rest) = match bytes.iter().position(|&b| b == b'\n') {
            Some(i) => (&bytes[..i], &bytes[i + 1..]),
            None => return Err(damaged("it is cut off in the first line".into())),
        };
        let head = [head.strip_suffix(b"\"manifest\":").unwrap_or(head), b"\"manifest\":0}"].concat();
        let head: Head = serde_json::from_slice(&head).map_err(|e| damaged(format!("first line: {e}")))?;
        if !(1..=VERSION).contains(&head.herd_checkpoint) {
            return Err(Error::new(
                Exit::Checkpoint,
                format!(
                    "{} has format version {}, this herd reads up to {VERSION}",
                    path.display(),
                    head.herd_checkpoint
                ),
            )
            .hint("use a newer herd"));
        }
        let body = rest.strip_suffix(b"\n}\n").ok_or_else(|| damaged("its last line is missing".into()))?;
        let sum = hex(xxh3_64(body));
        if sum != head.xxh3 {
            return Err(damaged(format!("its checksum is {sum}, it says {}", head.xxh3)));
        }
        let m: Manifest = serde_json::from_slice(body).map_err(|e| damaged(e.to_string()))?;
        match m.fault() {
            Some(why) => Err(damaged(why)),
            None => Ok(m),
        }
    }

    /// What no herd would have written: everything that reads a manifest relies on `None`.
    fn fault(&self) -> Option<String> {
        let mut names = HashSet::new();
        if let Some(t) = self.tensors.iter().find(|t| !names.insert((t.group, &t.name))) {
            return Some(format!("{} {} is listed twice", t.group, t.name));
        }
        for f in &self.files {
            if f.name.is_empty() || f.name.contains('/') || f.name == ".." || f.name == "." {
                return Some(format!("file name {:?}", f.name));
            }
            for d in &f.datasets {
                let Some(tensor) = self.tensors.get(d.tensor) else {
                    return Some(format!("{} names tensor {} of {}", f.name, d.tensor, self.tensors.len()));
                };
                if let Some(why) = d.span(&tensor.shape).fault() {
                    return Some(format!("{} {} in {}: {why}", tensor.group, tensor.name, f.name));
                }
                let end = d.at.checked_add(4 * d.len as u64);
                if end.is_none_or(|end| end > f.size) {
                    return Some(format!("{} {} passes the end of {}", tensor.group, tensor.name, f.name));
                }
            }
        }
        None
    }
}

/// Checksums are 16 hexadecimal digits: JSON numbers lose bits above 2^53 in many readers.
mod hex_sum {
    use super::hex;
    use serde::{de::Error, Deserialize, Deserializer, Serializer};

    pub fn serialize<S: Serializer>(sum: &u64, s: S) -> Result<S::Ok, S::Error> {
        s.serialize_str(&hex(*sum))
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<u64, D::Error> {
        let text = String::deserialize(d)?;
        u64::from_str_radix(&text, 16).map_err(|_| Error::custom(format!("{text:?} is no checksum")))
    }
}
