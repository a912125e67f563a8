//! Whether held-out conversations are trained on: those of `data.validation` that `data.train` has too, to the token.

use super::indexed::{Indexed, Sidecar};
use crate::config::Corpus;
use crate::error::Result;
use crate::text::grouped;
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use xxhash_rust::xxh3::xxh3_128;

/// What a look at both lists has found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Overlap {
    /// Held-out conversations, pairs counted as one.
    pub held_out: u64,
    /// Those of them that are in the training data.
    pub shared: u64,
    /// Of one of them, the number in its corpus and the corpus; then the same in the training data.
    pub first: Option<[(u64, PathBuf); 2]>,
    /// Bytes of training data that are more than was to be read: nothing was compared.
    pub too_much: Option<u64>,
}

impl Overlap {
    /// Compares all conversations of `held_out` with all of `train`, if those take no more than `most` bytes. A preference pair is one
    /// conversation: both answers have to be the same.
    ///
    /// Memory: some 64 bytes a held-out conversation. Errors: a corpus cannot be read, or has an id that is not below `vocab_size`.
    pub fn find(train: &[Corpus], held_out: &[Corpus], vocab_size: usize, most: u64) -> Result<Overlap> {
        let open = |list: &[Corpus]| list.iter().map(|c| Indexed::open(&c.path)).collect::<Result<Vec<_>>>();
        let (train, held_out) = (open(train)?, open(held_out)?);
        let bytes: u64 = train.iter().map(|f| f.tokens() * f.dtype.size() as u64).sum();
        if bytes > most {
            return Ok(Overlap { too_much: Some(bytes), ..Overlap::default() });
        }
        let mut found = Overlap::default();
        // sum → (corpus, number) of the first, how many
        let mut sums: HashMap<u128, (usize, u64, u64)> = HashMap::new();
        for (c, file) in held_out.iter().enumerate() {
            each(file, vocab_size, &mut |number, sum| {
                found.held_out += 1;
                sums.entry(sum).or_insert((c, number, 0)).2 += 1;
            })?;
        }
        for file in &train {
            each(file, vocab_size, &mut |number, sum| {
                // once it is counted it is not looked for again
                let Some((c, held, times)) = sums.remove(&sum) else { return };
                found.shared += times;
                let here = || [(held, held_out[c].prefix.clone()), (number, file.prefix.clone())];
                found.first.get_or_insert_with(here);
            })?;
        }
        Ok(found)
    }

    /// The fact for people, where some are shared.
    pub fn fact(&self) -> Option<String> {
        let [(held, of), (number, train)] = self.first.as_ref()?;
        let name = |p: &Path| p.display().to_string();
        Some(format!(
            "{} of {} held-out conversations are in data.train too, to the token: number {held} of {} is number {number} of {}",
            grouped(self.shared),
            grouped(self.held_out),
            name(of),
            name(train)
        ))
    }
}

/// Calls `told` with the number of each conversation, from 0, and a checksum of its tokens.
fn each(file: &Indexed, vocab_size: usize, told: &mut dyn FnMut(u64, u128)) -> Result<()> {
    let documents = if file.sidecar.as_ref().is_some_and(Sidecar::holds_pairs) { 2 } else { 1 };
    let (mut ids, mut at, mut number) = (Vec::new(), 0, 0);
    let mut lengths = file.document_lengths();
    while let Some(first) = lengths.next() {
        ids.clear();
        for length in std::iter::once(first).chain(lengths.by_ref().take(documents - 1)) {
            let length = length?;
            // where one answer ends and the other begins is part of what a pair is
            ids.push(-(length as i64));
            file.read(at, length as usize, vocab_size, &mut ids)?;
            at += length;
        }
        told(number, xxh3_128(bytemuck::cast_slice(&ids)));
        number += 1;
    }
    file.close();
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::indexed::{IndexedWriter, IndexedWritten, TokenizerNote};

    fn corpus(dir: &Path, name: &str, documents: &[&[u32]]) -> Corpus {
        let path = dir.join(name);
        let mut writer = IndexedWriter::create(&path, 100).unwrap();
        documents.iter().for_each(|d| writer.push(d).unwrap());
        let (spec, kind, fingerprint) = ("bytes".into(), "bytes".into(), "x".into());
        let tokenizer = TokenizerNote { spec, kind, fingerprint, vocab_size: 100, front: Vec::new(), eos: None };
        let (chat, sources, split) = (None, Vec::new(), "all".into());
        writer.finish(IndexedWritten { tokenizer, chat, sources, split, holdout: 0.0, text_bytes: 0 }).unwrap();
        Corpus { path, weight: None }
    }

    #[test]
    fn conversations_that_are_on_both_sides_are_counted_and_one_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let train = [
            corpus(dir.path(), "a", &[&[1, 2, 3], &[4, 5]]),
            corpus(dir.path(), "b", &[&[7], &[1, 2], &[8, 9], &[8, 9]]),
        ];
        let held_out =
            [corpus(dir.path(), "h", &[&[6], &[8, 9], &[8, 9], &[3]]), corpus(dir.path(), "i", &[&[4, 5, 6], &[4, 5]])];
        let found = Overlap::find(&train, &held_out, 100, 1 << 20).unwrap();
        assert_eq!((found.held_out, found.shared), (6, 3));
        let first = [(1, dir.path().join("i")), (1, dir.path().join("a"))];
        assert_eq!(found.first, Some(first));
        assert!(found.fact().unwrap().starts_with("3 of 6 held-out conversations"), "{found:?}");
        let none = Overlap::find(&train[..1], &held_out[..1], 100, 1 << 20).unwrap();
        assert_eq!((none.shared, none.fact(), none.too_much), (0, None, None));
        let unread = Overlap::find(&train, &held_out, 100, 10).unwrap();
        assert_eq!(unread, Overlap { too_much: Some(24), ..Overlap::default() });
        assert!(Overlap::find(&train, &held_out, 5, 1 << 20).is_err(), "an id of another tokenizer");
    }
}
