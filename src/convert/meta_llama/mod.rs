//! Meta's originals: `params.json`, `consolidated.NN.pth` (one per tensor-parallel rank), `tokenizer.model`.
//!
//! Each file holds its rank's slice of every tensor, so the tensors are put together here, by what their shapes say about
//! the dim they are cut along. The rows of q and k lie in another order than Hugging Face's (and herd's): Meta rotates
//! neighbours (2i, 2i + 1) of a head, Hugging Face the halves (i, i + D/2).

mod params;
mod pickle;
mod pth;
mod zip;

#[cfg(test)]
mod tests;

use crate::checkpoint::slice::{copy_runs, runs, Slice};
use crate::config::ModelConfig;
use crate::error::{Error, Exit, Result};
use crate::layout::units;
use params::{OriginalParams, Shapes};
use pth::Pth;
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::path::{Path, PathBuf};

/// Elements compared at a time.
const BLOCK: usize = 1 << 20;

/// Whether the directory looks like one of Meta's.
pub fn is_meta(directory: &Path) -> bool {
    directory.join("params.json").is_file()
}

/// The rank whose file has this name.
pub fn rank_of(name: &str) -> Option<usize> {
    name.strip_prefix("consolidated.")?.strip_suffix(".pth")?.parse().ok()
}

/// The files of one model. Nothing is in memory; reading streams. One process opens it; others are told where the tensors
/// lie, and open the files that they read.
#[derive(Serialize, Deserialize)]
pub struct Original {
    files: Vec<Pth>,
    tensors: HashMap<String, Cut>,
    model: ModelConfig,
}

/// How a tensor is spread over the files.
#[derive(Serialize, Deserialize)]
struct Cut {
    /// Meta's name.
    name: String,
    shape: Vec<usize>,
    /// File and the rectangle that it holds.
    slices: Vec<(usize, Slice)>,
    /// Rows of one head, where rows are in Meta's order.
    head: Option<usize>,
}

impl Original {
    /// Errors ([`Exit::Model`]): files missing or damaged, shapes that do not fit `params.json` or each other.
    pub fn open(directory: &Path) -> Result<Original> {
        let params = OriginalParams::read(&directory.join("params.json"))?;
        let files = files(directory)?.iter().map(|p| Pth::open(p)).collect::<Result<Vec<Pth>>>()?;
        let mut o = Original {
            files,
            tensors: HashMap::new(),
            model: params.model(&Shapes { vocab_size: 1, intermediate_size: 1, tied: false }),
        };
        let intermediate_size = o.rows("layers.0.feed_forward.w1.weight")?;
        match params.feed_forward() {
            Some(n) if n != intermediate_size => {
                return Err(wrong(format!(
                    "{}: params.json means a feed-forward layer of {n}, layers.0.feed_forward.w1.weight has {intermediate_size}",
                    directory.display()
                )))
            }
            _ => {}
        }
        let vocab_size = match params.vocab_size {
            Some(n) if n > 0 => n as usize,
            // Llama 2's files leave it to the tokenizer; the output matrix is cut along rows.
            _ => o.rows("output.weight")?,
        };
        let mut shapes = Shapes { vocab_size, intermediate_size, tied: false };
        let has_output = o.files[0].shape("output.weight").is_some();
        o.place(&params, &shapes, has_output)?;
        shapes.tied = !has_output || o.output_is_embedding()?;
        if shapes.tied {
            o.tensors.remove("lm_head.weight");
        }
        o.model = params.model(&shapes);
        Ok(o)
    }

    /// Shape of the model, from `params.json` and the tensors' own shapes.
    pub fn model(&self) -> &ModelConfig {
        &self.model
    }

    /// Names of the files, in rank order.
    pub fn files(&self) -> Vec<&str> {
        self.files.iter().filter_map(|f| f.path().file_name()?.to_str()).collect()
    }

    /// Global shape of a parameter by its Hugging Face name.
    pub fn shape(&self, name: &str) -> Option<&[usize]> {
        self.tensors.get(name).map(|t| t.shape.as_slice())
    }

    /// Elements `[start, start + out.len())` of the rectangle (`offset`, `extent`) of a parameter, as fp32 (exact), in
    /// Hugging Face's order of rows.
    pub fn read(&self, name: &str, offset: &[usize], extent: &[usize], start: usize, out: &mut [f32]) -> Result<()> {
        let cut = self.tensors.get(name).ok_or_else(|| wrong(format!("no tensor {name} among the weights")))?;
        let want =
            Slice { offset: offset.into(), extent: extent.into(), start, len: out.len(), ..Slice::whole(&cut.shape) };
        if let Some(why) = want.fault() {
            return Err(wrong(format!("{name}: {why}")));
        }
        let Some(head) = cut.head else { return self.gather(cut, &want, out) };
        // Row by row: each lies elsewhere in Meta's order.
        let width = extent[1];
        let mut done = 0;
        while done < out.len() {
            let (row, first) = ((start + done) / width, (start + done) % width);
            let n = (width - first).min(out.len() - done);
            let theirs = theirs(offset[0] + row, head);
            let want =
                Slice { offset: vec![theirs, offset[1]], extent: vec![1, width], start: first, len: n, ..want.clone() };
            self.gather(cut, &want, &mut out[done..done + n])?;
            done += n;
        }
        Ok(())
    }

    /// `want`, in Meta's order, from the files that hold parts of it.
    fn gather(&self, cut: &Cut, want: &Slice, out: &mut [f32]) -> Result<()> {
        for (file, have) in &cut.slices {
            let found = runs(have, want);
            if !found.is_empty() {
                copy_runs(&found, out, |from, part| self.files[*file].read(&cut.name, from, part))?;
            }
        }
        Ok(())
    }

    /// Rows of a tensor that is cut along rows.
    fn rows(&self, name: &str) -> Result<usize> {
        let of = |f: &Pth| f.shape(name).and_then(|s| s.first().copied()).ok_or_else(|| lacks(f, name));
        self.files.iter().map(of).sum()
    }

    /// Finds every parameter of the model in the files.
    fn place(&mut self, params: &OriginalParams, shapes: &Shapes, has_output: bool) -> Result<()> {
        let model = ModelConfig { tie_word_embeddings: !has_output, ..params.model(shapes) };
        for (name, shape) in units(&model).into_iter().flat_map(|(_, p)| p) {
            let theirs = meta_name(&name);
            let held =
                self.files.iter().map(|f| f.shape(&theirs).map(<[usize]>::to_vec).ok_or_else(|| lacks(f, &theirs)));
            let held: Vec<Vec<usize>> = held.collect::<Result<_>>()?;
            let slices = slices(&shape, &held).ok_or_else(|| {
                wrong(format!("{theirs} has shapes {held:?} in {} files, params.json means {shape:?}", held.len()))
            })?;
            let head = (theirs.ends_with("wq.weight") || theirs.ends_with("wk.weight")).then(|| params.head_dim());
            self.tensors.insert(name, Cut { name: theirs, shape, slices, head });
        }
        let known: std::collections::HashSet<&str> = self.tensors.values().map(|c| c.name.as_str()).collect();
        let extra = self.files[0].names().filter(|n| !known.contains(n) && !n.ends_with("rope.freqs")).min();
        match extra {
            Some(name) => Err(wrong(format!(
                "{} holds {name}, which Llama 3 of this params.json has not",
                self.files[0].path().display()
            ))),
            None => Ok(()),
        }
    }

    /// Whether the output matrix is the embedding, bit for bit: how Meta stores the tied models. Another matrix differs in
    /// the first block.
    fn output_is_embedding(&self) -> Result<bool> {
        let (Some(e), Some(_)) = (self.shape("model.embed_tokens.weight"), self.shape("lm_head.weight")) else {
            return Ok(false);
        };
        let (shape, len) = (e.to_vec(), e.iter().product::<usize>());
        let (mut x, mut y) = (vec![0.0f32; BLOCK.min(len)], vec![0.0f32; BLOCK.min(len)]);
        for start in (0..len).step_by(BLOCK) {
            let n = BLOCK.min(len - start);
            self.read("model.embed_tokens.weight", &[0, 0], &shape, start, &mut x[..n])?;
            self.read("lm_head.weight", &[0, 0], &shape, start, &mut y[..n])?;
            if x[..n].iter().zip(&y[..n]).any(|(a, b)| a.to_bits() != b.to_bits()) {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

/// `consolidated.00.pth` and its siblings, in rank order, none missing.
fn files(directory: &Path) -> Result<Vec<PathBuf>> {
    let listed = std::fs::read_dir(directory).map_err(|e| Error::io(directory, "list", &e, Exit::Model))?;
    let mut found: Vec<(usize, PathBuf)> =
        listed.filter_map(|e| e.ok()).filter_map(|e| Some((rank_of(e.file_name().to_str()?)?, e.path()))).collect();
    found.sort();
    if found.is_empty() {
        return Err(wrong(format!("{} has params.json but no consolidated.*.pth", directory.display())));
    }
    match found.iter().enumerate().find(|(i, (rank, _))| i != rank) {
        Some((i, _)) => {
            Err(wrong(format!("{} lacks consolidated.{i:02}.pth", directory.display()))
                .hint("the download is incomplete"))
        }
        None => Ok(found.into_iter().map(|(_, path)| path).collect()),
    }
}

/// The rectangles of `shape` that files with tensors of the shapes `held` have: whole copies, or equal parts along one
/// dim. More files than key/value heads: neighbours hold copies of one head.
fn slices(shape: &[usize], held: &[Vec<usize>]) -> Option<Vec<(usize, Slice)>> {
    let n = held.len();
    if held.iter().any(|h| *h != held[0] || h.len() != shape.len()) {
        return None;
    }
    if held[0] == shape {
        return Some(vec![(0, Slice::whole(shape))]);
    }
    let dim = (0..shape.len()).find(|&d| held[0][d] != shape[d])?;
    let rest_fits = (0..shape.len()).all(|d| d == dim || held[0][d] == shape[d]);
    let part = held[0][dim];
    if !rest_fits || part == 0 || !shape[dim].is_multiple_of(part) || !n.is_multiple_of(shape[dim] / part) {
        return None;
    }
    let parts = shape[dim] / part;
    let slice = |i: usize| {
        let mut offset = vec![0; shape.len()];
        offset[dim] = i * part;
        (
            i * (n / parts),
            Slice { offset, extent: held[0].clone(), len: held[0].iter().product(), ..Slice::whole(shape) },
        )
    };
    Some((0..parts).map(slice).collect())
}

/// Row of a q or k matrix in Meta's order that is row `ours` in Hugging Face's; heads have `head` rows.
fn theirs(ours: usize, head: usize) -> usize {
    let (at, within) = (ours / head * head, ours % head);
    at + within % (head / 2) * 2 + within / (head / 2)
}

/// Meta's name of a parameter.
fn meta_name(name: &str) -> String {
    let table = [
        ("model.embed_tokens.", "tok_embeddings."),
        ("model.norm.", "norm."),
        ("lm_head.", "output."),
        ("model.layers.", "layers."),
        ("self_attn.q_proj", "attention.wq"),
        ("self_attn.k_proj", "attention.wk"),
        ("self_attn.v_proj", "attention.wv"),
        ("self_attn.o_proj", "attention.wo"),
        ("mlp.gate_proj", "feed_forward.w1"),
        ("mlp.down_proj", "feed_forward.w2"),
        ("mlp.up_proj", "feed_forward.w3"),
        ("post_attention_layernorm", "ffn_norm"),
        ("input_layernorm", "attention_norm"),
    ];
    table.iter().fold(name.to_string(), |name, (ours, theirs)| name.replace(ours, theirs))
}

fn lacks(file: &Pth, name: &str) -> Error {
    wrong(format!("{} lacks {name}", file.path().display()))
}

fn wrong(fact: String) -> Error {
    Error::new(Exit::Model, fact)
}
