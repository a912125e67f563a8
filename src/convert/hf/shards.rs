//! Sharded safetensors, read a piece at a time: headers at once, data never more than a few megabytes.
//!
//! The format: u64 length of the header, JSON header (`name` → dtype, shape, byte range), data.

use crate::checkpoint::slice::{copy_runs, runs, Slice};
use crate::error::{Error, Exit, Result};
use crate::lazy_file::LazyFile;
use half::slice::HalfFloatSliceExt;
use safetensors::tensor::Metadata;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeSet, HashMap};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

pub const INDEX: &str = "model.safetensors.index.json";
pub const SINGLE: &str = "model.safetensors";
/// Elements converted at a time.
const BLOCK: usize = 1 << 20;
/// Larger headers are refused, as the safetensors library does.
const MAX_HEADER: u64 = 100_000_000;

/// Type of weights in a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum, Serialize, Deserialize)]
pub enum Dtype {
    /// bfloat16, 2 bytes a weight.
    Bf16,
    /// IEEE half precision, 2 bytes a weight, at most 65504.
    Fp16,
    /// IEEE single precision, 4 bytes a weight.
    Fp32,
}

impl Dtype {
    /// Bytes of an element.
    pub fn size(self) -> usize {
        match self {
            Dtype::Bf16 | Dtype::Fp16 => 2,
            Dtype::Fp32 => 4,
        }
    }

    /// PyTorch's word for it.
    pub fn torch(self) -> &'static str {
        match self {
            Dtype::Bf16 => "bfloat16",
            Dtype::Fp16 => "float16",
            Dtype::Fp32 => "float32",
        }
    }

    /// Safetensors' word for it.
    pub fn tag(self) -> safetensors::Dtype {
        match self {
            Dtype::Bf16 => safetensors::Dtype::BF16,
            Dtype::Fp16 => safetensors::Dtype::F16,
            Dtype::Fp32 => safetensors::Dtype::F32,
        }
    }
}

/// All tensors of a Hugging Face directory. One process opens it; others are told where the tensors lie, and open the files
/// that they read.
#[derive(Serialize, Deserialize)]
pub struct Shards {
    files: Vec<LazyFile>,
    tensors: HashMap<String, Place>,
}

#[derive(Serialize, Deserialize)]
struct Place {
    file: usize,
    dtype: Dtype,
    shape: Vec<usize>,
    /// First byte of the data in the file.
    at: u64,
}

impl Shards {
    /// Opens `model.safetensors.index.json` with all its files, or `model.safetensors`. Errors ([`Exit::Model`]): none of
    /// them, or both, a file that the index names is absent, cut off or damaged, a type other than fp32, bf16 and fp16.
    pub fn open(directory: &Path) -> Result<Shards> {
        let index = directory.join(INDEX);
        let names: BTreeSet<String> = match index.is_file() {
            true => index_map(&index)?.into_values().collect(),
            false => [SINGLE.to_string()].into(),
        };
        if !names.contains(SINGLE) && directory.join(SINGLE).is_file() {
            let fact = format!(
                "{} holds two sets of weights: {SINGLE}, and {} files named by {INDEX}",
                directory.display(),
                names.len()
            );
            return Err(wrong(fact).hint("move away the set that is not meant; transformers would read the first"));
        }
        let mut s = Shards { files: Vec::new(), tensors: HashMap::new() };
        for name in names {
            s.add(directory, &name, index.is_file())?;
        }
        if index.is_file() {
            let absent = index_map(&index)?.into_keys().find(|t| !s.tensors.contains_key(t));
            if let Some(tensor) = absent {
                return Err(wrong(format!("{} lists {tensor}, which none of its files holds", index.display())));
            }
        }
        Ok(s)
    }

    /// One file of a directory.
    pub fn of_file(directory: &Path, name: &str) -> Result<Shards> {
        let path = directory.join(name);
        if !path.is_file() {
            return Err(wrong(format!("there is no {}", path.display())));
        }
        let mut s = Shards { files: Vec::new(), tensors: HashMap::new() };
        s.add(directory, name, false)?;
        Ok(s)
    }

    fn add(&mut self, directory: &Path, name: &str, indexed: bool) -> Result<()> {
        if name.contains('/') {
            return Err(wrong(format!(
                "{} names the file {name:?}, outside the directory",
                directory.join(INDEX).display()
            )));
        }
        let path = directory.join(name);
        let file = LazyFile::find(path.clone(), Exit::Model).map_err(|e| match (path.exists(), indexed) {
            (false, true) => wrong(format!("{} is named by {INDEX} but is not there", path.display()))
                .hint("the download is incomplete"),
            (false, false) => wrong(format!("{} has neither {SINGLE} nor {INDEX}", directory.display()))
                .hint("weights must be in safetensors, or Meta's params.json with consolidated.*.pth; PyTorch's *.bin is not read"),
            (true, _) => e,
        })?;
        let number = self.files.len();
        let (data, header) = read_header(&file)?;
        for (tensor, info) in header.tensors() {
            let dtype = match info.dtype {
                safetensors::Dtype::F32 => Dtype::Fp32,
                safetensors::Dtype::BF16 => Dtype::Bf16,
                safetensors::Dtype::F16 => Dtype::Fp16,
                other => {
                    return Err(wrong(format!("{tensor} in {} has type {other:?}", path.display()))
                        .hint("herd reads F32, BF16 and F16"))
                }
            };
            let place = Place { file: number, dtype, shape: info.shape.clone(), at: data + info.data_offsets.0 as u64 };
            if self.tensors.insert(tensor.clone(), place).is_some() {
                return Err(wrong(format!("{tensor} is in {} and in another file as well", path.display())));
            }
        }
        self.files.push(file);
        Ok(())
    }

    /// Names of the files.
    pub fn files(&self) -> Vec<&str> {
        self.files.iter().filter_map(|f| f.path.file_name()?.to_str()).collect()
    }

    /// Names of all tensors in the files, in no order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// Global shape of a tensor; `None` where no file holds one of that name.
    pub fn shape(&self, name: &str) -> Option<&[usize]> {
        self.tensors.get(name).map(|t| t.shape.as_slice())
    }

    /// Elements `[start, start + out.len())` of the rectangle (`offset`, `extent`) of a tensor, as fp32 (exact).
    pub fn read(&self, name: &str, offset: &[usize], extent: &[usize], start: usize, out: &mut [f32]) -> Result<()> {
        let Some(t) = self.tensors.get(name) else {
            return Err(wrong(format!("no tensor {name} among the weights")));
        };
        let all = Slice::whole(&t.shape);
        let want = Slice { offset: offset.into(), extent: extent.into(), start, len: out.len(), ..all.clone() };
        if let Some(why) = want.fault() {
            return Err(wrong(format!("{name}: {why}")));
        }
        let from_file = &self.files[t.file];
        let file = from_file.reach()?;
        copy_runs(&runs(&all, &want), out, |from, part| {
            let at = t.at + (from * t.dtype.size()) as u64;
            read_as_f32(&file, t.dtype, at, part)
        })
        .map_err(|e| from_file.refused(&e))
    }
}

/// The index's `weight_map`: tensor → file.
fn index_map(index: &Path) -> Result<HashMap<String, String>> {
    #[derive(serde::Deserialize)]
    struct Index {
        weight_map: HashMap<String, String>,
    }
    let text = std::fs::read(index).map_err(|e| Error::io(index, "read", &e, Exit::Model))?;
    let parsed: Index = serde_json::from_slice(crate::text::unmarked(&text))
        .map_err(|e| wrong(format!("{} is damaged: {e}", index.display())))?;
    Ok(parsed.weight_map)
}

/// Where the data starts, and the header.
fn read_header(file: &LazyFile) -> Result<(u64, Metadata)> {
    let (path, size) = (&file.path, file.len);
    let cut = |need: u64| {
        wrong(format!("{} is cut off: it has {size} bytes of {need}", path.display()))
            .hint("the download is incomplete")
    };
    if size < 8 {
        return Err(cut(8));
    }
    let mut len = [0; 8];
    file.read(0, &mut len)?;
    let len = u64::from_le_bytes(len);
    if len > MAX_HEADER {
        return Err(wrong(format!("{} is no safetensors file: its header would have {len} bytes", path.display())));
    }
    if size < 8 + len {
        return Err(cut(8 + len));
    }
    let mut header = vec![0; len as usize];
    file.read(8, &mut header)?;
    let header: Metadata =
        serde_json::from_slice(&header).map_err(|e| wrong(format!("{} has a damaged header: {e}", path.display())))?;
    match 8 + len + header.data_len() as u64 {
        need if need == size => Ok((8 + len, header)),
        need if need > size => Err(cut(need)),
        need => Err(wrong(format!("{} has {size} bytes, its header accounts for {need}", path.display()))),
    }
}

/// `out.len()` elements from byte `at` of a file, as fp32 (exact).
pub fn read_as_f32(file: &File, dtype: Dtype, at: u64, out: &mut [f32]) -> std::io::Result<()> {
    let mut at = at;
    if dtype == Dtype::Fp32 {
        return file.read_exact_at(bytemuck::cast_slice_mut(out), at);
    }
    let mut buffer = vec![0u16; BLOCK.min(out.len())];
    for part in out.chunks_mut(BLOCK) {
        let raw = &mut buffer[..part.len()];
        file.read_exact_at(bytemuck::cast_slice_mut(raw), at)?;
        match dtype {
            Dtype::Bf16 => bytemuck::cast_slice::<u16, half::bf16>(raw).convert_to_f32_slice(part),
            _ => bytemuck::cast_slice::<u16, half::f16>(raw).convert_to_f32_slice(part),
        }
        at += 2 * part.len() as u64;
    }
    Ok(())
}

fn wrong(fact: String) -> Error {
    Error::new(Exit::Model, fact)
}
