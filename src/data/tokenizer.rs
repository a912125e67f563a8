//! Text to ids and back: built-in bytes, a Hugging Face `tokenizer.json`, or a tiktoken `tokenizer.model`.
//!
//! Text is data: the names of special tokens inside it (`<|end_of_text|>`) are encoded as ordinary characters, so that no
//! document can forge the end of another. Prompts may ask for the tokens ([`Tokenizer::encode_special`]).

mod bytes;
mod front;
mod huggingface;
mod pieces;
mod tiktoken;
mod words;

use crate::error::{Error, Exit, Result};
use crate::text::unmarked;
pub use front::{Bos, Front};
use serde::{Deserialize, Serialize};
use std::ops::Range;
use std::path::{Path, PathBuf};
use xxhash_rust::xxh3::xxh3_128;

/// A file's name and content.
pub type NamedFile = (String, Vec<u8>);

/// An open tokenizer. Encoding is thread-safe.
pub struct Tokenizer {
    spec: String,
    /// The file it was read from, absolute; symbolic links stay as they are.
    file: Option<PathBuf>,
    kind: Kind,
    vocab_size: usize,
    bos: Option<u32>,
    eos: Option<u32>,
    fingerprint: String,
}

/// What a run needs to know of its tokenizer: it reads ids, and no text.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenizerFacts {
    /// [`Tokenizer::place`].
    pub place: String,
    /// [`Tokenizer::fingerprint`].
    pub fingerprint: String,
    /// [`Tokenizer::vocab_size`].
    pub vocab_size: usize,
    /// Id of beginning-of-text; `None` where the tokenizer names none.
    pub bos: Option<u32>,
    /// Id of end-of-text; `None` where the tokenizer names none.
    pub eos: Option<u32>,
}

enum Kind {
    Bytes,
    HuggingFace(Box<huggingface::HuggingFace>),
    Tiktoken(Box<tiktoken::Tiktoken>),
}

/// The file that a directory's tokenizer is read from.
pub fn file_in(directory: &Path) -> Option<PathBuf> {
    let names = ["herd_tokenizer.json", "tokenizer.json", "tokenizer.model"];
    names.iter().map(|name| directory.join(name)).find(|file| file.is_file())
}

impl Tokenizer {
    /// Opens `bytes`, a `tokenizer.json`, a tiktoken model, or a directory that holds one of them. Which of the two a
    /// file is, its content decides: JSON starts with `{`.
    pub fn open(spec: &str) -> Result<Tokenizer> {
        if spec == "bytes" {
            return Ok(Tokenizer::bytes(spec));
        }
        let mut path = PathBuf::from(spec);
        if path.is_dir() {
            path = file_in(&path).ok_or_else(|| {
                Error::new(Exit::Data, format!("{spec} holds no tokenizer"))
                    .hint("expected tokenizer.json or tokenizer.model in it")
            })?;
        }
        let content = std::fs::read(&path).map_err(|e| {
            Error::io(&path, "read tokenizer", &e, Exit::Data).hint("`bytes`, a tokenizer.json or a tokenizer.model")
        })?;
        let content = unmarked(&content).to_vec();
        if path.ends_with("herd_tokenizer.json") {
            bytes::check_note(&path, &content)?;
            return Ok(Tokenizer::bytes("bytes"));
        }
        let fingerprint = hex(xxh3_128(&content));
        let file = Some(std::path::absolute(&path).unwrap_or_else(|_| path.clone()));
        if content.iter().find(|b| !b.is_ascii_whitespace()) == Some(&b'{') {
            let t = huggingface::HuggingFace::open(&path, content)?;
            let (vocab_size, bos, eos) = (t.vocab_size(), t.bos, t.eos);
            return Ok(Tokenizer {
                spec: spec.into(),
                file,
                kind: Kind::HuggingFace(Box::new(t)),
                vocab_size,
                bos,
                eos,
                fingerprint,
            });
        }
        let t = tiktoken::Tiktoken::open(&path, content)?;
        let (vocab_size, bos, eos) = (t.vocab_size(), Some(t.bos()), Some(t.eos()));
        let kind = Kind::Tiktoken(Box::new(t));
        Ok(Tokenizer { spec: spec.into(), file, kind, vocab_size, bos, eos, fingerprint })
    }

    fn bytes(spec: &str) -> Tokenizer {
        Tokenizer {
            spec: spec.into(),
            file: None,
            kind: Kind::Bytes,
            vocab_size: bytes::VOCAB,
            bos: Some(bytes::BOS),
            eos: Some(bytes::EOS),
            fingerprint: hex(xxh3_128(bytes::DEFINITION)),
        }
    }

    /// Highest id + 1, special tokens included: what a model's `vocab_size` must be at least.
    pub fn vocab_size(&self) -> usize {
        self.vocab_size
    }

    /// Ids of `text`, without beginning- or end-of-text. Fails only where the tokenizer itself cannot take the text (a
    /// word model without an unknown token).
    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        match &self.kind {
            Kind::Bytes => Ok(bytes::encode(text)),
            Kind::HuggingFace(t) => t.encode(text),
            Kind::Tiktoken(t) => t.encode(text),
        }
        .map_err(|e| e.context(&self.spec))
    }

    /// As [`Tokenizer::encode`], but the name of a special token in the text is the token.
    pub fn encode_special(&self, text: &str) -> Result<Vec<u32>> {
        match &self.kind {
            Kind::Bytes => Ok(bytes::encode_special(text)),
            Kind::HuggingFace(t) => t.encode_special(text),
            Kind::Tiktoken(t) => t.encode_special(text),
        }
        .map_err(|e| e.context(&self.spec))
    }

    /// As [`Tokenizer::encode_special`], each token with the bytes of `text` that it is. Where a tokenizer rewrites a text before it
    /// cuts it, they are those that the piece came from; tokens of one character that is cut in several have all of it.
    pub fn encode_places(&self, text: &str) -> Result<Vec<(u32, Range<usize>)>> {
        match &self.kind {
            Kind::Bytes => Ok(bytes::encode_places(text)),
            Kind::HuggingFace(t) => t.encode_places(text),
            Kind::Tiktoken(t) => t.encode_places(text),
        }
        .map_err(|e| e.context(&self.spec))
    }

    /// Whether `id` is a special token.
    pub fn is_special(&self, id: u32) -> bool {
        match &self.kind {
            Kind::Bytes => (bytes::BOS..bytes::VOCAB as u32).contains(&id),
            Kind::HuggingFace(t) => t.is_special(id),
            Kind::Tiktoken(t) => t.is_special(id),
        }
    }

    /// Text of `ids`. Bytes that are no UTF-8 become U+FFFD, so any cut of a sequence can be shown; special tokens keep
    /// their names; an id the tokenizer does not have shows as U+FFFD.
    pub fn decode(&self, ids: &[u32]) -> String {
        match &self.kind {
            Kind::Bytes => bytes::decode(ids),
            Kind::HuggingFace(t) => t.decode(ids),
            Kind::Tiktoken(t) => t.decode(ids),
        }
    }

    /// The bytes that each of [`Tokenizer::vocab_size`] ids is in a text; none for special tokens and for ids without a token. Errors
    /// ([`Exit::Data`]): a tokenizer whose tokens are no fixed bytes.
    pub fn pieces(&self) -> Result<Vec<Vec<u8>>> {
        match &self.kind {
            Kind::Bytes => Ok((0..self.vocab_size).map(|id| u8::try_from(id).into_iter().collect()).collect()),
            Kind::HuggingFace(t) => pieces::of(&t.files[0].1, self.vocab_size).map_err(|why| {
                Error::new(Exit::Data, format!("{}: tokens have no bytes of their own: {why}", self.spec))
            }),
            Kind::Tiktoken(t) => Ok(t.pieces()),
        }
    }

    /// Id of the special token `name`; `None` for other tokens, which may come from text.
    pub fn special(&self, name: &str) -> Option<u32> {
        match &self.kind {
            Kind::Bytes => bytes::special(name),
            Kind::HuggingFace(t) => t.special(name),
            Kind::Tiktoken(t) => t.special(name),
        }
    }

    /// Id of beginning-of-text.
    pub fn bos(&self) -> Option<u32> {
        self.bos
    }

    /// Id of end-of-text, which `herd data tokenize` puts after each document.
    pub fn eos(&self) -> Option<u32> {
        self.eos
    }

    /// Every id that ends a text, [`Tokenizer::eos`] first. Llama 3's models end their turns with others; a
    /// `tokenizer.model` does not say of which kind its model is, and one that is not tuned to follow instructions never
    /// writes them.
    pub fn ends(&self) -> Vec<u32> {
        let turns = match &self.kind {
            Kind::Tiktoken(t) => t.ends_of_turns().to_vec(),
            Kind::Bytes | Kind::HuggingFace(_) => Vec::new(),
        };
        self.eos.into_iter().chain(turns).collect()
    }

    /// xxh3-128 of the defining file, as 32 hexadecimal digits; a constant for `bytes`.
    pub fn fingerprint(&self) -> String {
        self.fingerprint.clone()
    }

    /// `bytes`, `huggingface` or `tiktoken`.
    pub fn kind(&self) -> &'static str {
        match self.kind {
            Kind::Bytes => "bytes",
            Kind::HuggingFace(_) => "huggingface",
            Kind::Tiktoken(_) => "tiktoken",
        }
    }

    /// What the user called it.
    pub fn spec(&self) -> &str {
        &self.spec
    }

    /// What it is from wherever a command is run: `bytes`, or the absolute path of its file.
    pub fn place(&self) -> String {
        self.file.as_ref().map_or("bytes".into(), |f| f.to_string_lossy().into_owned())
    }

    /// The directory of its file.
    pub fn directory(&self) -> Option<&Path> {
        self.file.as_ref()?.parent()
    }

    /// What is told to ranks that do not open it.
    pub fn facts(&self) -> TokenizerFacts {
        let (vocab_size, bos, eos) = (self.vocab_size, self.bos, self.eos);
        TokenizerFacts { place: self.place(), fingerprint: self.fingerprint(), vocab_size, bos, eos }
    }

    /// One line for logs.
    pub fn describe(&self) -> String {
        format!("{} ({}, vocabulary {})", self.spec, self.kind(), self.vocab_size)
    }

    /// The files to put next to an exported model, each with its name; transformers loads them with `AutoTokenizer`
    /// (a tiktoken model: with the tiktoken package installed).
    pub fn files(&self) -> Vec<NamedFile> {
        match &self.kind {
            Kind::Bytes => bytes::files(),
            Kind::HuggingFace(t) => t.files.clone(),
            Kind::Tiktoken(t) => t.files(),
        }
    }
}

fn hex(x: u128) -> String {
    format!("{x:032x}")
}

/// The files of `names` that lie beside `path`. What is called JSON must be JSON: else what it says would be passed over.
fn beside(path: &Path, names: &[&str]) -> Result<Vec<NamedFile>> {
    let mut found = Vec::new();
    for name in names {
        let p = path.with_file_name(name);
        match std::fs::read(&p) {
            Ok(content) => found.push((name.to_string(), checked(&p, unmarked(&content))?.to_vec())),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
            Err(e) => return Err(Error::io(&p, "read", &e, Exit::Data)),
        }
    }
    Ok(found)
}

fn checked<'a>(path: &Path, content: &'a [u8]) -> Result<&'a [u8]> {
    if path.extension().is_some_and(|e| e == "json") {
        serde_json::from_slice::<serde_json::Value>(content).map_err(|e| {
            Error::new(Exit::Data, format!("{} is not JSON: {e}", path.display()))
                .hint("it says which tokens begin and end a text; mend it, or move it away")
        })?;
    }
    Ok(content)
}

#[cfg(test)]
mod tests;
