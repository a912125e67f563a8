//! HDF5's part of a file: where each dataset lies, and its attributes.
//!
//! HDF5 lays the file out in memory (a memfd), with space for each dataset but without its data; the bytes are then
//! written by `file` straight to disk at the places HDF5 chose. So the library is never in the data path and never
//! meets a full disk: a failed close can leave it unable to close at all. The result is an ordinary HDF5 file.
//!
//! HDF5 is built without its own thread safety; the crate holds one lock around every call.

use super::meta::{hex, Group, Piece};
use super::slice::Slice;
use crate::error::{Error, Exit, Result};
use hdf5::file::LibraryVersion;
use hdf5::plist::dataset_create::{AllocTime, FillTime, Layout};
use hdf5::types::{FixedAscii, VarLenUnicode};
use hdf5::Dataset;
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::fs::File;
use std::os::fd::AsRawFd;

/// Datasets of this many bytes or more start at a multiple of it: a page, so that no write reads a page first and
/// direct I/O stays possible. One writer owns a file, so stripes need not be respected beyond that.
pub const ALIGNMENT: u64 = 4096;

/// One slice to be stored: a dataset of a file, a part of a snapshot.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Spec {
    /// Which of the three numbers kept per parameter.
    pub group: Group,
    /// Global name of the parameter.
    pub name: String,
    /// The elements of the tensor.
    pub span: Slice,
}

impl Spec {
    /// The elements of `p`, without their values.
    pub fn of(p: &Piece) -> Spec {
        Spec { group: p.group, name: p.name.into(), span: Slice::of(p) }
    }
}

/// An HDF5 file under construction in memory.
pub struct Map {
    file: hdf5::File,
    memory: File,
    /// None for a spec of no elements: HDF5 gives those no place.
    datasets: Vec<Option<Dataset>>,
    /// First byte of each dataset.
    pub at: Vec<u64>,
}

impl Map {
    /// Lays out `specs`; `meta` becomes the root's attribute of that name.
    pub fn new(specs: &[Spec], meta: &str) -> Result<Map> {
        let memory = memfd()?;
        lay_out(specs, meta, memory)
            .map_err(|e| Error::new(Exit::Internal, format!("HDF5 cannot lay out a checkpoint: {e}")))
    }

    /// Sets the checksums (xxh3-64, one per dataset) and closes: the file's image with holes for the data, and its size.
    pub fn finish(self, sums: &[u64]) -> Result<(File, u64)> {
        let Map { file, memory, datasets, .. } = self;
        let close = || -> hdf5::Result<()> {
            for (dataset, sum) in datasets.iter().zip(sums) {
                let Some(dataset) = dataset else { continue };
                dataset.attr("xxh3")?.write_scalar(&sum_text(*sum)?)?;
            }
            drop(datasets);
            file.close()
        };
        close().map_err(|e| Error::new(Exit::Internal, format!("HDF5 cannot finish a checkpoint: {e}")))?;
        let size = memory.metadata().map_err(|e| memory_error(&e))?.len();
        Ok((memory, size))
    }
}

fn lay_out(specs: &[Spec], meta: &str, memory: File) -> hdf5::Result<Map> {
    let path = format!("/proc/self/fd/{}", memory.as_raw_fd());
    let file = hdf5::File::with_options()
        .with_fapl(|p| {
            // The stdio driver, because sec2 asks for the real path of a symbolic link, and a memfd has none.
            // 1.8's object headers carry checksums; nothing newer is needed, so that old readers can read.
            p.libver_bounds(LibraryVersion::V18, LibraryVersion::V110)
                .alignment(ALIGNMENT, ALIGNMENT)
                .file_locking(false)
                .stdio()
        })
        .create(path)?;
    let text = |s: &str| s.parse::<VarLenUnicode>().map_err(|e| hdf5::Error::from(format!("{e}")));
    file.new_attr::<VarLenUnicode>().create("meta")?.write_scalar(&text(meta)?)?;
    file.new_attr::<VarLenUnicode>().create("format")?.write_scalar(&text(super::manifest::FORMAT)?)?;
    let mut parents: HashMap<(Group, &str), hdf5::Group> = HashMap::new();
    let (mut datasets, mut at) = (Vec::new(), Vec::new());
    for spec in specs {
        if spec.span.len == 0 {
            datasets.push(None);
            at.push(0);
            continue;
        }
        let parent = match parents.entry((spec.group, &spec.name)) {
            std::collections::hash_map::Entry::Occupied(e) => e.into_mut(),
            std::collections::hash_map::Entry::Vacant(e) => {
                e.insert(file.create_group(&format!("{}/{}", spec.group, spec.name))?)
            }
        };
        let span = &spec.span;
        let dataset = parent
            .new_dataset::<f32>()
            .shape(span.len)
            .layout(Layout::Contiguous)
            .alloc_time(Some(AllocTime::Early))
            .fill_time(FillTime::Never)
            .obj_track_times(false)
            .create(parent.len().to_string().as_str())?;
        for (key, dims) in [("shape", &span.shape), ("offset", &span.offset), ("extent", &span.extent)] {
            let dims: Vec<u64> = dims.iter().map(|&d| d as u64).collect();
            dataset.new_attr::<u64>().shape(dims.len()).create(key)?.write_raw(&dims)?;
        }
        dataset.new_attr::<u64>().create("start")?.write_scalar(&(span.start as u64))?;
        dataset.new_attr::<SumText>().create("xxh3")?.write_scalar(&sum_text(0)?)?;
        at.push(dataset.offset().ok_or_else(|| hdf5::Error::from("a contiguous dataset has no place"))?);
        datasets.push(Some(dataset));
    }
    drop(parents);
    Ok(Map { file, memory, datasets, at })
}

type SumText = FixedAscii<16>;

fn sum_text(sum: u64) -> hdf5::Result<SumText> {
    SumText::from_ascii(&hex(sum)).map_err(|e| hdf5::Error::from(e.to_string()))
}

fn memfd() -> Result<File> {
    let fd = rustix::fs::memfd_create("herd-checkpoint", rustix::fs::MemfdFlags::CLOEXEC);
    fd.map(File::from).map_err(|e| memory_error(&e.into()))
}

fn memory_error(e: &std::io::Error) -> Error {
    Error::new(Exit::Storage, format!("cannot lay out a checkpoint in memory: {e}"))
}
