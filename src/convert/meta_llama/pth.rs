//! One `.pth` file: tensors by name, read a piece at a time.

use crate::convert::hf::{read_as_f32, Dtype};
use crate::convert::meta_llama::pickle::{tensors, PickledTensor};
use crate::convert::meta_llama::zip::{entries, ZipEntry};
use crate::error::{Error, Exit, Result};
use crate::lazy_file::LazyFile;
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::path::Path;

/// A larger description is no model's.
const MAX_PICKLE: u64 = 1 << 30;
/// Elements between neighbours up to which a row is read along and picked from, rather than element by element.
const NEAR: usize = 64;

#[derive(Serialize, Deserialize)]
pub struct Pth {
    file: LazyFile,
    tensors: HashMap<String, Placed>,
}

/// A tensor and the bytes of its storage.
#[derive(Serialize, Deserialize)]
struct Placed {
    dtype: Dtype,
    data: ZipEntry,
    /// First element in the storage.
    offset: usize,
    shape: Vec<usize>,
    /// Elements between neighbours on each dim.
    strides: Vec<usize>,
}

impl Pth {
    /// Opens a file that `torch.save` wrote (since PyTorch 1.6). Errors ([`Exit::Model`]): damaged, compressed, not a
    /// dictionary of tensors, of a type other than fp32, bf16 and fp16, big-endian.
    pub fn open(path: &Path) -> Result<Pth> {
        let wrong = |why: String| Error::new(Exit::Model, format!("{}: {why}", path.display()));
        let lazy = LazyFile::find(path.into(), Exit::Model)?;
        let file = lazy.reach()?;
        let all = entries(&file).map_err(|why| wrong(why).hint("is the download complete?"))?;
        let Some((pickle, prefix)) = all.keys().find_map(|n| Some((n, n.strip_suffix("data.pkl")?))) else {
            return Err(wrong("it holds no data.pkl: it was not written by torch.save".into()));
        };
        let content = |entry: &ZipEntry| -> Result<Vec<u8>> {
            if entry.len > MAX_PICKLE {
                return Err(wrong(format!("its description would have {} bytes", entry.len)));
            }
            let mut bytes = vec![0; entry.len as usize];
            lazy.read(entry.at, &mut bytes)?;
            Ok(bytes)
        };
        if let Some(order) = all.get(&format!("{prefix}byteorder")) {
            if content(order)? != b"little" {
                return Err(wrong("its numbers are big-endian".into()));
            }
        }
        let mut placed = HashMap::new();
        for (name, PickledTensor { storage, offset, shape, strides }) in
            tensors(&content(&all[pickle])?).map_err(wrong)?
        {
            // rope.freqs is complex in some files, and follows from the configuration.
            let Ok(dtype) = storage.dtype else { continue };
            let key = &storage.key;
            let data = *all.get(&format!("{prefix}data/{key}")).ok_or_else(|| wrong(format!("{name} has no data")))?;
            let need = (storage.len as u64).checked_mul(dtype.size() as u64);
            if need.is_none_or(|need| need > data.len) {
                let (n, len) = (storage.len, data.len);
                return Err(wrong(format!("{name} has {n} elements of {}, but {len} bytes", dtype.torch())));
            }
            placed.insert(name, Placed { dtype, data, offset, shape, strides });
        }
        Ok(Pth { file: lazy, tensors: placed })
    }

    pub fn path(&self) -> &Path {
        &self.file.path
    }

    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    pub fn shape(&self, name: &str) -> Option<&[usize]> {
        self.tensors.get(name).map(|t| t.shape.as_slice())
    }

    /// Elements `[from, from + out.len())` of a tensor in row-major order, as fp32 (exact). The caller asks for what is there.
    pub fn read(&self, name: &str, from: usize, out: &mut [f32]) -> Result<()> {
        let Some(tensor) = self.tensors.get(name) else {
            return Err(Error::new(Exit::Model, format!("{}: there is no {name}", self.path().display())));
        };
        let (Placed { dtype, data, .. }, file) = (tensor, self.file.reach()?);
        let read = |at: usize, part: &mut [f32]| read_as_f32(&file, *dtype, data.at + (at * dtype.size()) as u64, part);
        let io = |e: std::io::Error| self.file.refused(&e);
        if tensor.is_contiguous() {
            return read(tensor.offset + from, out).map_err(io);
        }
        // A view: row by row along the last dim.
        let (row, stride) = (tensor.shape.last().copied().unwrap_or(1), tensor.strides.last().copied().unwrap_or(1));
        let mut done = 0;
        while done < out.len() {
            let (index, first) = ((from + done) / row, (from + done) % row);
            let n = (row - first).min(out.len() - done);
            let at = tensor.row(index) + first * stride;
            strided(&read, at, stride, &mut out[done..done + n]).map_err(io)?;
            done += n;
        }
        Ok(())
    }
}

/// Every `stride`-th element from `at` on.
fn strided(
    read: &dyn Fn(usize, &mut [f32]) -> std::io::Result<()>, at: usize, stride: usize, out: &mut [f32],
) -> std::io::Result<()> {
    match stride {
        1 => read(at, out),
        2..=NEAR => {
            let mut all = vec![0.0; (out.len() - 1) * stride + 1];
            read(at, &mut all)?;
            out.iter_mut().zip(all.iter().step_by(stride)).for_each(|(o, x)| *o = *x);
            Ok(())
        }
        _ => out.iter_mut().enumerate().try_for_each(|(i, o)| read(at + i * stride, std::slice::from_mut(o))),
    }
}

impl Placed {
    fn is_contiguous(&self) -> bool {
        let mut expected = 1;
        self.shape.iter().zip(&self.strides).rev().all(|(&n, &s)| {
            let fits = n == 1 || s == expected;
            expected *= n;
            fits
        })
    }

    /// Storage position of the first element of row `index`, rows counted over all dims but the last.
    fn row(&self, mut index: usize) -> usize {
        let mut at = self.offset;
        for d in (0..self.shape.len().saturating_sub(1)).rev() {
            at += index % self.shape[d] * self.strides[d];
            index /= self.shape[d];
        }
        at
    }
}
