//! llama.cpp's GGUF: one file with metadata, tokenizer and tensors, most of them quantized; read as fp32.
//!
//! The rows of q and k lie in another order than Hugging Face's (and herd's), as in Meta's files: llama.cpp rotates neighbours
//! (2i, 2i + 1) of a head, Hugging Face the halves (i, i + D/2).

mod blocks;
mod header;
mod shape;
mod vocabulary;

#[cfg(test)]
mod tests;

pub use vocabulary::files as tokenizer_files;

use crate::checkpoint::slice::Slice;
use crate::checkpoint::SpecialTokens;
use crate::config::ModelConfig;
use crate::data::tokenizer::NamedFile;
use crate::error::{Error, Exit, Result};
use crate::layout::units;
use crate::lazy_file::LazyFile;
use header::{GgufHead, StoredTensor};
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::path::Path;

/// Whether a path is such a file, by its first bytes.
pub fn is_gguf(path: &Path) -> bool {
    use std::io::Read;
    let mut magic = [0; 4];
    path.is_file() && std::fs::File::open(path).and_then(|mut f| f.read_exact(&mut magic)).is_ok() && magic == *b"GGUF"
}

/// An open file. Nothing is in memory; reading streams. One process looks at its head; others are told where the tensors lie.
#[derive(Serialize, Deserialize)]
pub struct Gguf {
    file: LazyFile,
    /// By Hugging Face's names.
    tensors: HashMap<String, StoredTensor>,
    model: ModelConfig,
    special_tokens: SpecialTokens,
}

impl Gguf {
    /// Errors ([`Exit::Model`]): no GGUF, damaged, not a Llama, or stored as herd does not read.
    pub fn open(path: &Path) -> Result<Gguf> {
        let head = GgufHead::read(path)?;
        let file = LazyFile::find(path.to_path_buf(), Exit::Model)?;
        let of_file = |e: Error| e.context(path.display());
        let factors = match head.tensors.get(shape::ROPE) {
            Some(t) => {
                let mut factors = vec![0.0; t.shape.iter().product()];
                decode(&file, t, 0, &mut factors)?;
                Some(factors)
            }
            None => None,
        };
        let model = shape::model(&head, factors.as_deref()).map_err(of_file)?;
        let mut left = head.tensors.clone();
        left.remove(shape::ROPE);
        let names = units(&model).into_iter().flat_map(|(_, params)| params).map(|(name, _)| name);
        let tensors = names.filter_map(|name| left.remove(&shape::gguf_name(&name)).map(|t| (name, t))).collect();
        if let Some(name) = left.keys().min() {
            return Err(of_file(wrong(format!("it holds {name}, which Llama 3 of this configuration has not"))));
        }
        Ok(Gguf { file, tensors, model, special_tokens: vocabulary::special_tokens(&head) })
    }

    /// Shape of the model, from the file's metadata and its tensors.
    pub fn model(&self) -> &ModelConfig {
        &self.model
    }

    /// Token ids that the metadata names; several may end a text.
    pub fn special_tokens(&self) -> &SpecialTokens {
        &self.special_tokens
    }

    /// Its name, as a list.
    pub fn files(&self) -> Vec<&str> {
        self.file.path.file_name().and_then(|n| n.to_str()).into_iter().collect()
    }

    /// Global shape of a parameter by its Hugging Face name.
    pub fn shape(&self, name: &str) -> Option<&[usize]> {
        self.tensors.get(name).map(|t| t.shape.as_slice())
    }

    /// Elements `[start, start + out.len())` of the rectangle (`offset`, `extent`) of a parameter, as fp32, in Hugging Face's order
    /// of rows.
    pub fn read(&self, name: &str, offset: &[usize], extent: &[usize], start: usize, out: &mut [f32]) -> Result<()> {
        let tensor = self.tensors.get(name).ok_or_else(|| wrong(format!("no tensor {name} among the weights")))?;
        let want = Slice {
            offset: offset.into(),
            extent: extent.into(),
            start,
            len: out.len(),
            ..Slice::whole(&tensor.shape)
        };
        if let Some(why) = want.fault() {
            return Err(wrong(format!("{name}: {why}")));
        }
        let rotated = name.ends_with("q_proj.weight") || name.ends_with("k_proj.weight");
        let (columns, width) = (tensor.shape[tensor.shape.len() - 1], extent[extent.len() - 1]);
        let (first_row, first_column) = match offset {
            [row, column] => (*row, *column),
            [column] => (0, *column),
            _ => return Err(wrong(format!("{name} has {} dims", offset.len()))),
        };
        if !rotated && width == columns {
            return decode(&self.file, tensor, first_row * columns + start, out);
        }
        let mut done = 0;
        while done < out.len() {
            let (row, at) = (first_row + (start + done) / width, (start + done) % width);
            let n = (width - at).min(out.len() - done);
            let row = if rotated { theirs(row, self.model.head_dim()) } else { row };
            decode(&self.file, tensor, row * columns + first_column + at, &mut out[done..done + n])?;
            done += n;
        }
        Ok(())
    }
}

/// The tokenizer of a file, as files. Errors: as of [`tokenizer_files`].
pub fn tokenizer_of(path: &Path) -> Result<Vec<NamedFile>> {
    tokenizer_files(&GgufHead::read(path)?).map_err(|e| e.context(path.display()))
}

/// Elements from `first` on, of the whole tensor row by row: the blocks that they lie in are read whole.
fn decode(file: &LazyFile, t: &StoredTensor, first: usize, out: &mut [f32]) -> Result<()> {
    let (elements, bytes) = (t.kind.elements(), t.kind.bytes());
    let (from, to) = (first / elements, (first + out.len()).div_ceil(elements));
    let mut raw = vec![0u8; (to - from) * bytes];
    file.read(t.at + (from * bytes) as u64, &mut raw)?;
    if first.is_multiple_of(elements) && out.len().is_multiple_of(elements) {
        t.kind.decode(&raw, out);
        return Ok(());
    }
    let mut whole = vec![0f32; (to - from) * elements];
    t.kind.decode(&raw, &mut whole);
    out.copy_from_slice(&whole[first - from * elements..][..out.len()]);
    Ok(())
}

/// Row of a q or k matrix in llama.cpp's order that is row `ours` in Hugging Face's; heads have `head` rows.
fn theirs(ours: usize, head: usize) -> usize {
    let (at, within) = (ours / head * head, ours % head);
    at + within % (head / 2) * 2 + within / (head / 2)
}

fn wrong(fact: String) -> Error {
    Error::new(Exit::Model, fact)
}
