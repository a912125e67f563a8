//! Writing a Hugging Face directory: headers first, then the data tensor by tensor, all under a temporary name.

use crate::checkpoint::disk;
use crate::convert::hf::shards::{Dtype, INDEX, SINGLE};
use crate::convert::hf::{config, generation};
use crate::convert::weights::Weights;
use crate::convert::{foreign, peft, Own};
use crate::data::tokenizer::Bos;
use crate::data::Tokenizer;
use crate::error::{Error, Exit, Result};
use crate::layout::{adapter_shapes, units};
use crate::progress::Meter;
use half::slice::HalfFloatSliceExt;
use safetensors::tensor::{Metadata, TensorInfo};
use serde_json::{json, Map, Value};
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

/// Elements in memory at a time.
const BLOCK: usize = 1 << 20;

/// How an export is written.
#[derive(Clone, Debug)]
pub struct ExportOptions {
    /// Type of the weights in the files; they are rounded from fp32 to nearest even.
    pub dtype: Dtype,
    /// Largest data size of one safetensors file, in bytes; a single tensor may pass it.
    pub shard_size: u64,
    /// The tokenizer to export (as `data.tokenizer` would name it), instead of the one the weights know.
    pub tokenizer: Option<PathBuf>,
    /// Counts the bytes of weights written.
    pub meter: Meter,
}

/// What [`export`] wrote.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Exported {
    /// Directory that was written.
    pub path: PathBuf,
    /// Safetensors files.
    pub shards: usize,
    /// Bytes of weights.
    pub bytes: u64,
    /// Tokenizer files written.
    pub tokenizer: Vec<String>,
    /// Why there are none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub no_tokenizer: Option<String>,
}

type NamedShape = (String, Vec<usize>);

/// Writes `weights` to the directory `out`, which must be absent or empty. Streams: a few megabytes are in memory.
///
/// Errors: [`Exit::Usage`] when `out` holds something, [`Exit::Storage`] from the filesystem, [`Exit::Model`] when a
/// value does not fit fp16. On an error nothing is left behind.
pub fn export(weights: &Weights, out: &Path, options: &ExportOptions) -> Result<Exported> {
    written(out, |temporary| write_all(weights, temporary, options))
}

/// Writes the adapters of `weights` in PEFT's form, under the same rules. Errors: [`Exit::Usage`] where it has none.
pub fn export_adapter(weights: &Weights, out: &Path, options: &ExportOptions) -> Result<Exported> {
    let Some((lora, base)) = weights.adapters() else {
        return Err(Error::new(Exit::Usage, "these weights have no adapters").hint("leave --adapter out"));
    };
    if let Some(format) = lora.quantize {
        tracing::warn!(
            "the adapters were trained beside matrices in {}, and fit {} best when it is loaded so (NF4: bitsandbytes' 4 bits without double \
             quantization); without --adapter they are merged into what they were trained beside",
            format.name(),
            base.display()
        );
    }
    written(out, |directory| {
        let model = weights.model();
        let names: Vec<NamedShape> =
            (0..model.num_hidden_layers).flat_map(|i| adapter_shapes(model, lora, i)).collect();
        let bytes = names.iter().map(|(_, s)| s.iter().product::<usize>() * options.dtype.size()).sum::<usize>() as u64;
        options.meter.begin("export", bytes);
        write_shard(weights, &directory.join(peft::TENSORS), &names, &peft::peft_name, options)?;
        write_json(&directory.join(peft::CONFIG), &peft::config(lora, base))?;
        Ok(Exported { path: directory.into(), shards: 1, bytes, tokenizer: Vec::new(), no_tokenizer: None })
    })
}

/// What `write` makes in a directory of another name becomes `out`.
fn written(out: &Path, write: impl FnOnce(&Path) -> Result<Exported>) -> Result<Exported> {
    if out.exists() && std::fs::read_dir(out).map(|mut d| d.next().is_some()).unwrap_or(true) {
        return Err(Error::new(Exit::Usage, format!("{} exists and is not an empty directory", out.display()))
            .hint("export to a new directory"));
    }
    let name =
        out.file_name().ok_or_else(|| Error::new(Exit::Usage, format!("{} names no directory", out.display())))?;
    let parent = out.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let temporary = parent.join(format!("{}.tmp-{}", name.to_string_lossy(), std::process::id()));
    disk::remove_dir(&temporary)?;
    std::fs::create_dir_all(&temporary).map_err(disk::refused(&temporary, "create"))?;
    let finish = |mut written: Exported| {
        disk::sync_dir(&temporary)?;
        std::fs::rename(&temporary, out).map_err(disk::refused(out, "rename the export to"))?;
        disk::sync_dir(parent)?;
        written.path = out.into();
        Ok(written)
    };
    let done = write(&temporary).and_then(finish);
    if done.is_err() {
        let _ = disk::remove_dir(&temporary);
    }
    done
}

fn write_all(weights: &Weights, directory: &Path, options: &ExportOptions) -> Result<Exported> {
    // First: what cannot be had is told before gigabytes are written.
    let tokenizer = tokenizer(weights, options)?;
    let generation = generation(weights, &tokenizer)?;
    let tensors: Vec<NamedShape> = units(weights.model()).into_iter().flat_map(|(_, params)| params).collect();
    let all: usize = tensors.iter().map(|(_, shape)| shape.iter().product::<usize>()).sum();
    let shards = split(tensors, options);
    options.meter.begin("export", (all * options.dtype.size()) as u64);
    let mut map = Map::new();
    let mut bytes = 0;
    for (i, shard) in shards.iter().enumerate() {
        let name = match shards.len() {
            1 => SINGLE.to_string(),
            n => format!("model-{:05}-of-{n:05}.safetensors", i + 1),
        };
        bytes += write_shard(weights, &directory.join(&name), shard, &|name| name.to_string(), options)?;
        map.extend(shard.iter().map(|(tensor, _)| (tensor.clone(), json!(name))));
    }
    if shards.len() > 1 {
        write_json(&directory.join(INDEX), &json!({ "metadata": { "total_size": bytes }, "weight_map": map }))?;
    }
    let special = weights.special_tokens();
    write_json(&directory.join("config.json"), &config::write(weights.model(), special, options.dtype.torch()))?;
    write_json(&directory.join(generation::FILE), &generation)?;
    let (tokenizer, no_tokenizer) = match tokenizer {
        Own::Is(tokenizer) => (write_tokenizer(weights, &tokenizer, directory)?, None),
        Own::Lost(why) => (Vec::new(), Some(why)),
    };
    Ok(Exported { path: directory.into(), shards: shards.len(), bytes, tokenizer, no_tokenizer })
}

/// Consecutive tensors up to the shard size.
fn split(tensors: Vec<NamedShape>, options: &ExportOptions) -> Vec<Vec<NamedShape>> {
    let mut shards: Vec<Vec<NamedShape>> = Vec::new();
    let mut room = 0;
    for tensor in tensors {
        let size = (tensor.1.iter().product::<usize>() * options.dtype.size()) as u64;
        if size > room || shards.is_empty() {
            shards.push(Vec::new());
            room = options.shard_size;
        }
        room = room.saturating_sub(size);
        if let Some(last) = shards.last_mut() {
            last.push(tensor);
        }
    }
    shards
}

/// One safetensors file with the tensors' names as `named`; returns its bytes of data.
fn write_shard(
    weights: &Weights, path: &Path, tensors: &[NamedShape], named: &dyn Fn(&str) -> String, options: &ExportOptions,
) -> Result<u64> {
    let (mut at, dtype) = (0, options.dtype);
    let infos = tensors
        .iter()
        .map(|(name, shape)| {
            let from = at;
            at += shape.iter().product::<usize>() * dtype.size();
            (named(name), TensorInfo { dtype: dtype.tag(), shape: shape.clone(), data_offsets: (from, at) })
        })
        .collect();
    let internal = |e: String| Error::new(Exit::Internal, format!("the header of {}: {e}", path.display()));
    let format = [("format".to_string(), "pt".to_string())].into();
    let header = Metadata::new(Some(format), infos).map_err(|e| internal(e.to_string()))?;
    let mut header = serde_json::to_vec(&header).map_err(|e| internal(e.to_string()))?;
    // Data starts at a multiple of 8; the format allows spaces at the header's end for that.
    header.resize(header.len().next_multiple_of(8), b' ');

    let refused = disk::refused(path, "write");
    let file = File::create(path).map_err(&refused)?;
    let mut file = BufWriter::with_capacity(1 << 16, file);
    file.write_all(&(header.len() as u64).to_le_bytes()).and_then(|()| file.write_all(&header)).map_err(&refused)?;
    let (mut values, mut raw) = (vec![0f32; BLOCK], vec![0u16; BLOCK]);
    for (name, shape) in tensors {
        let (len, origin) = (shape.iter().product::<usize>(), vec![0; shape.len()]);
        for start in (0..len).step_by(BLOCK) {
            let values = &mut values[..BLOCK.min(len - start)];
            weights.read_range(name, &origin, shape, start, values)?;
            let raw = &mut raw[..values.len()];
            let bytes = convert(values, raw, dtype).map_err(|v| {
                Error::new(Exit::Model, format!("{name} holds {v}, which fp16 cannot (largest 65504)"))
                    .hint("export as bf16 or fp32")
            })?;
            file.write_all(bytes).map_err(&refused)?;
            options.meter.add(bytes.len() as u64);
        }
    }
    let file = file.into_inner().map_err(|e| refused(e.into_error()))?;
    file.sync_all().map_err(disk::refused(path, "sync"))?;
    Ok(at as u64)
}

/// `values` in `dtype`, rounded to nearest even; the error is a finite value that fp16 cannot hold.
fn convert<'a>(values: &'a [f32], raw: &'a mut [u16], dtype: Dtype) -> std::result::Result<&'a [u8], f32> {
    match dtype {
        Dtype::Fp32 => return Ok(bytemuck::cast_slice(values)),
        Dtype::Bf16 => bytemuck::cast_slice_mut::<u16, half::bf16>(raw).convert_from_f32_slice(values),
        Dtype::Fp16 => {
            let halves = bytemuck::cast_slice_mut::<u16, half::f16>(raw);
            halves.convert_from_f32_slice(values);
            if let Some(i) = (0..values.len()).find(|&i| values[i].is_finite() && !halves[i].is_finite()) {
                return Err(values[i]);
            }
        }
    }
    Ok(bytemuck::cast_slice(raw))
}

fn write_json(path: &Path, value: &Value) -> Result<()> {
    disk::write_synced(path, format!("{value:#}\n").as_bytes())
}

/// The one asked for, else the weights' own.
fn tokenizer(weights: &Weights, options: &ExportOptions) -> Result<Own> {
    let tokenizer = match &options.tokenizer {
        None => Own::of(weights)?,
        Some(path) => Own::Is(Box::new(Tokenizer::open(&path.to_string_lossy())?)),
    };
    match &tokenizer {
        Own::Is(t) => foreign(weights, t).into_iter().for_each(|line| tracing::warn!("{line}")),
        Own::Lost(why) => tracing::warn!("no tokenizer is exported: {why}"),
    }
    Ok(tokenizer)
}

/// Writes the files of the tokenizer; their names.
fn write_tokenizer(weights: &Weights, tokenizer: &Tokenizer, directory: &Path) -> Result<Vec<String>> {
    let (has, takes) = (tokenizer.vocab_size(), weights.model().vocab_size);
    if has > takes {
        tracing::warn!("tokenizer {} has {has} tokens, the model's vocabulary only {takes}", tokenizer.place());
    }
    if tokenizer.kind() == "tiktoken" {
        tracing::info!(
            "from a tokenizer.model transformers reads no rule for what stands in front of a text; herd: {}",
            tokenizer.front(Bos::Own)?.says
        );
    }
    let mut files = tokenizer.files();
    let has = |name: &str| files.iter().any(|(n, _)| n == name);
    if has("tokenizer.json") && !has("tokenizer_config.json") {
        // Without it transformers would guess a class from the model type and rebuild the tokenizer its own way.
        let length = weights.model().max_position_embeddings;
        let config = json!({ "tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": length });
        files.push(("tokenizer_config.json".into(), format!("{config:#}\n").into_bytes()));
    }
    for (name, bytes) in &files {
        disk::write_synced(&directory.join(name), bytes)?;
    }
    Ok(files.into_iter().map(|(name, _)| name).collect())
}

/// The model's own `generation_config.json`; for weights that know none, the one beside the tokenizer; else one that says
/// no more than the special tokens.
fn generation(weights: &Weights, tokenizer: &Own) -> Result<Value> {
    if !weights.generation().is_null() {
        return Ok(weights.generation().clone());
    }
    let directory = match tokenizer {
        Own::Is(t) => t.directory(),
        Own::Lost(_) => None,
    };
    if let Some(directory) = directory {
        let beside = generation::read(directory)?;
        if !beside.is_null() {
            tracing::info!("{} is taken from {}", generation::FILE, directory.display());
            return Ok(beside);
        }
    }
    Ok(generation::write(weights.special_tokens()))
}
