//! The head of a GGUF file (ggml's docs/gguf.md, versions 2 and 3): metadata by key, and where each tensor lies.

use super::blocks::BlockType;
use crate::error::{Error, Exit, Result};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::{BufReader, Read};
use std::path::Path;

const MAGIC: &[u8; 4] = b"GGUF";
/// Elements of a list at most; vocabularies have a hundredth of it.
const ELEMENTS: usize = 1 << 24;
/// Lists in a list; the format has no need of more.
const DEPTH: usize = 4;

/// A value of the metadata.
#[derive(Clone, Debug, PartialEq)]
pub enum MetaValue {
    Unsigned(u64),
    Signed(i64),
    Float(f64),
    Bool(bool),
    Text(String),
    List(Vec<MetaValue>),
}

/// Where a tensor lies, and how.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StoredTensor {
    /// Outermost dim first.
    pub shape: Vec<usize>,
    pub kind: BlockType,
    /// Place of its first byte in the file.
    pub at: u64,
}

/// All that stands before the data.
#[derive(Debug)]
pub struct GgufHead {
    pub meta: BTreeMap<String, MetaValue>,
    pub tensors: HashMap<String, StoredTensor>,
}

impl GgufHead {
    /// Errors ([`Exit::Model`]): no GGUF, cut short, a type of tensor that herd does not read.
    pub fn read(path: &Path) -> Result<GgufHead> {
        let file = File::open(path).map_err(|e| Error::io(path, "read", &e, Exit::Model))?;
        let len = file.metadata().map_err(|e| Error::io(path, "read", &e, Exit::Model))?.len();
        read(BufReader::with_capacity(1 << 18, file), len).map_err(|e| e.context(path.display()))
    }

    pub fn text(&self, key: &str) -> Option<&str> {
        match self.meta.get(key) {
            Some(MetaValue::Text(text)) => Some(text),
            _ => None,
        }
    }

    pub fn count(&self, key: &str) -> Option<u64> {
        match self.meta.get(key) {
            Some(MetaValue::Unsigned(n)) => Some(*n),
            Some(MetaValue::Signed(n)) => u64::try_from(*n).ok(),
            _ => None,
        }
    }

    pub fn number(&self, key: &str) -> Option<f64> {
        match self.meta.get(key) {
            Some(MetaValue::Float(x)) => Some(*x),
            _ => self.count(key).map(|n| n as f64),
        }
    }

    pub fn flag(&self, key: &str) -> Option<bool> {
        match self.meta.get(key) {
            Some(MetaValue::Bool(b)) => Some(*b),
            _ => None,
        }
    }

    pub fn list(&self, key: &str) -> Option<&[MetaValue]> {
        match self.meta.get(key) {
            Some(MetaValue::List(all)) => Some(all),
            _ => None,
        }
    }

    /// A list of texts.
    pub fn texts(&self, key: &str) -> Option<Vec<&str>> {
        fn one(v: &MetaValue) -> Option<&str> {
            match v {
                MetaValue::Text(text) => Some(text),
                _ => None,
            }
        }
        self.list(key)?.iter().map(one).collect()
    }
}

/// Reads little-endian values, never beyond the file.
struct Source<R> {
    from: R,
    at: u64,
    len: u64,
}

fn read<R: Read>(from: R, len: u64) -> Result<GgufHead> {
    let mut s = Source { from, at: 0, len };
    if s.bytes::<4>()? != *MAGIC {
        return Err(wrong("it does not begin with GGUF: no model of that form".into()));
    }
    let version = u32::from_le_bytes(s.bytes()?);
    if !(2..=3).contains(&version) {
        return Err(wrong(format!("its version is {version}; herd reads 2 and 3, little-endian")));
    }
    let (tensors, keys) = (s.u64()?, s.u64()?);
    let mut meta = BTreeMap::new();
    for _ in 0..keys {
        let key = s.text()?;
        let kind = u32::from_le_bytes(s.bytes()?);
        meta.insert(key, s.value(kind, 0)?);
    }
    let mut found = Vec::new();
    for _ in 0..tensors {
        let name = s.text()?;
        let dims = u32::from_le_bytes(s.bytes()?);
        if dims == 0 || dims > 4 {
            return Err(wrong(format!("{name} has {dims} dims, not 1 to 4")));
        }
        let mut shape = (0..dims).map(|_| s.u64().map(|n| n as usize)).collect::<Result<Vec<usize>>>()?;
        shape.reverse();
        let code = u32::from_le_bytes(s.bytes()?);
        found.push((name, shape, code, s.u64()?));
    }
    let align = match meta.get("general.alignment") {
        Some(MetaValue::Unsigned(n)) if n.is_power_of_two() => *n,
        Some(other) => return Err(wrong(format!("general.alignment is {other:?}, not a power of two"))),
        None => 32,
    };
    let data = s.at.next_multiple_of(align);
    let mut all = HashMap::new();
    for (name, shape, code, offset) in found {
        let kind = BlockType::of_code(code).map_err(|what| {
            wrong(format!("{name} is stored as {what}; herd reads {}", BlockType::names()))
                .hint("take the model in another quantization, Q8_0 or Q4_K_M with Q6_K for instance")
        })?;
        let elements = shape.iter().try_fold(1usize, |n, &d| n.checked_mul(d)).filter(|&n| n < 1 << 48);
        let Some(elements) = elements else { return Err(wrong(format!("{name} has the shape {shape:?}"))) };
        let columns = shape[shape.len() - 1];
        if !columns.is_multiple_of(kind.elements()) {
            let fact = format!("{name} has rows of {columns}, which {kind:?} cannot cut in {}", kind.elements());
            return Err(wrong(fact));
        }
        let bytes = (elements / kind.elements() * kind.bytes()) as u64;
        let at = data.saturating_add(offset);
        if at.saturating_add(bytes) > len {
            let fact = format!("{name} lies at {at} and takes {bytes} bytes, the file has {len}");
            return Err(wrong(fact).hint("the download is incomplete"));
        }
        all.insert(name, StoredTensor { shape, kind, at });
    }
    Ok(GgufHead { meta, tensors: all })
}

impl<R: Read> Source<R> {
    fn bytes<const N: usize>(&mut self) -> Result<[u8; N]> {
        let mut out = [0; N];
        self.fill(&mut out)?;
        Ok(out)
    }

    fn fill(&mut self, out: &mut [u8]) -> Result<()> {
        self.at += out.len() as u64;
        self.from.read_exact(out).map_err(|e| wrong(format!("its head ends early, at byte {}: {e}", self.at)))
    }

    fn u64(&mut self) -> Result<u64> {
        self.bytes().map(u64::from_le_bytes)
    }

    /// A length that cannot be beyond the end of the file.
    fn length(&mut self) -> Result<usize> {
        let (n, left) = (self.u64()?, self.len.saturating_sub(self.at));
        match n <= left {
            true => Ok(n as usize),
            false => Err(wrong(format!("a length of {n} at byte {}, where {left} bytes are left", self.at))),
        }
    }

    fn text(&mut self) -> Result<String> {
        let mut out = vec![0; self.length()?];
        self.fill(&mut out)?;
        Ok(String::from_utf8_lossy(&out).into_owned())
    }

    fn value(&mut self, kind: u32, depth: usize) -> Result<MetaValue> {
        use MetaValue::*;
        Ok(match kind {
            0 => Unsigned(u8::from_le_bytes(self.bytes()?).into()),
            1 => Signed(i8::from_le_bytes(self.bytes()?).into()),
            2 => Unsigned(u16::from_le_bytes(self.bytes()?).into()),
            3 => Signed(i16::from_le_bytes(self.bytes()?).into()),
            4 => Unsigned(u32::from_le_bytes(self.bytes()?).into()),
            5 => Signed(i32::from_le_bytes(self.bytes()?).into()),
            // As the shortest decimal that is this float: 1e-5 was meant, not 9.99999974e-6.
            6 => {
                let x = f32::from_le_bytes(self.bytes()?);
                Float(x.to_string().parse().unwrap_or(x.into()))
            }
            7 => Bool(u8::from_le_bytes(self.bytes()?) != 0),
            8 => Text(self.text()?),
            9 if depth < DEPTH => {
                let kind = u32::from_le_bytes(self.bytes()?);
                let n = self.length()?;
                if n > ELEMENTS {
                    return Err(wrong(format!("a list of {n} at byte {}, more than {ELEMENTS}", self.at)));
                }
                List((0..n).map(|_| self.value(kind, depth + 1)).collect::<Result<_>>()?)
            }
            10 => Unsigned(self.u64()?),
            11 => Signed(i64::from_le_bytes(self.bytes()?)),
            12 => Float(f64::from_le_bytes(self.bytes()?)),
            other => return Err(wrong(format!("a value of type {other} at byte {}", self.at))),
        })
    }
}

fn wrong(fact: String) -> Error {
    Error::new(Exit::Model, fact)
}
