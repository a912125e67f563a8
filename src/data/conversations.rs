//! Samples of conversations: whole ones side by side in a row, each with its own loss mask, none seeing another.
//!
//! A conversation of L tokens has L − 1 places of a row: its tokens but the last as inputs, but the first as targets, −1 where the
//! mask says that a target does not count. What is left of a row is filled with token 0 and does not count; it is a document of
//! its own.

use super::chat::{ChatTemplate, Trap};
use super::indexed::{IndexExtent, Indexed, Sidecar};
use super::packing::Packs;
use super::sample::{Cutting, PairId, Sample, SampleRow};
use super::Tokenizer;
use crate::config::{ChatPacking, ChatSection, Corpus, TooLong};
use crate::error::{Error, Exit, Result};
use crate::text::grouped;

/// Conversations of a mask that herd has not made that are looked at.
const LOOKED_AT: u64 = 1000;

/// Packs the conversations of `file`, or with [`Cutting::pairs`] its preference pairs, for rows of [`Cutting::sequence_length`].
///
/// # Errors
/// [`Exit::Data`]: there is no loss mask; it is pairs that are asked for and there are none, or the other way round; some are longer
/// than a row, and nothing says what to do with them; or one would be cut before its first token that counts.
pub fn look(file: &Indexed, how: &Cutting, rules: &ChatSection) -> Result<Packs> {
    if !file.masked() {
        let fact =
            format!("{} has no loss mask, but data.chat says that it holds conversations", file.prefix.display());
        return Err(Error::new(Exit::Data, fact).hint("make it with `herd data chat`, or leave data.chat out"));
    }
    of_kind(file, how.pairs)?;
    let room = how.sequence_length as u64;
    let (mut needs, mut long, mut longest, mut start, mut unlearned) = (Vec::new(), 0u64, 0, 0, 0u64);
    let mut lengths = file.document_lengths();
    while let Some(first) = lengths.next() {
        let second = if how.pairs { lengths.next() } else { None };
        let parts = [Some(first), second].into_iter().flatten().collect::<Result<Vec<u64>>>()?;
        let length: u64 = parts.iter().sum();
        // A conversation of L tokens takes L − 1 places.
        let need: u64 = parts.iter().map(|l| l.saturating_sub(1)).sum();
        let over = need > room;
        (long, longest) = (long + over as u64, longest.max(length));
        let kept = match (over, rules.too_long) {
            (false, _) => parts.iter().all(|&l| l >= 2),
            (true, TooLong::Drop) => false,
            (true, TooLong::Refuse) => true,
            (true, TooLong::Cut) => {
                let mut mask = Vec::new();
                file.read_mask(start, room as usize + 1, &mut mask)?;
                unlearned += !mask.iter().skip(1).any(|&m| m > 0) as u64;
                true
            }
        };
        needs.push(kept.then_some(need.min(room) as u32));
        start += length;
    }
    drop(lengths);
    file.close();
    let name = file.prefix.display();
    let (what, most) = match how.pairs {
        true => ("preference pairs", room + 2),
        false => ("conversations", room + 1),
    };
    if long > 0 && rules.too_long == TooLong::Refuse {
        let fact = format!(
            "{name}: {} of {} {what} are longer than the {most} tokens of a sample; the longest has {}",
            grouped(long),
            grouped(needs.len() as u64),
            grouped(longest)
        );
        let hint = match how.pairs {
            true => "raise data.sequence_length, which both answers of a pair share, or leave them out with data.chat.too_long: drop",
            false => "raise data.sequence_length, or say with data.chat.too_long what becomes of them: cut or drop",
        };
        return Err(Error::new(Exit::Data, fact).hint(hint));
    }
    if unlearned > 0 {
        let fact = format!("{name}: {unlearned} conversations are cut at {} tokens before one that counts", room + 1);
        return Err(Trap::CutBeforeTrained.error(fact));
    }
    let packs = Packs::first_fit(&needs, room as u32, how.seed, rules.packing == ChatPacking::FirstFit)?;
    match packs.is_empty() {
        true => Err(Error::new(Exit::Data, format!("{name}: none of its {} {what} is left", needs.len()))
            .hint("data.chat.too_long: drop leaves out those longer than data.sequence_length")),
        false => Ok(packs),
    }
}

/// Conversations are not trained on as pairs, nor pairs as conversations.
fn of_kind(file: &Indexed, pairs: bool) -> Result<()> {
    let name = file.prefix.display();
    let is = file.sidecar.as_ref().is_some_and(Sidecar::holds_pairs);
    let (fact, hint) = match (pairs, is) {
        (true, false) => (
            format!("{name} holds no preference pairs, which dpo trains on"),
            "make it with `herd data chat` from rows with chosen and rejected, or leave dpo out",
        ),
        (false, true) => (
            format!("{name} holds preference pairs: without dpo the rejected answers would be learned as well"),
            "set dpo: {} to train on pairs",
        ),
        (true, true) if !file.documents().is_multiple_of(2) => (
            format!("{name} is said to hold preference pairs, but has {} conversations", file.documents()),
            "make it again with `herd data chat`",
        ),
        _ => return Ok(()),
    };
    Err(Error::new(Exit::Data, fact).hint(hint))
}

/// Row `i` of `packs`, of corpus number `corpus`.
pub fn read(file: &Indexed, packs: &Packs, corpus: usize, i: u64, how: &Cutting) -> Result<Sample> {
    let room = how.sequence_length;
    let (mut row, mut tokens, mut mask) = (SampleRow::new(room), Vec::new(), Vec::new());
    let packed = packs.documents(i as usize).iter().map(|&d| d as u64);
    let pairs: Vec<PairId> = match how.pairs {
        true => packed.clone().map(|number| PairId { corpus, number }).collect(),
        false => Vec::new(),
    };
    let documents: Vec<u64> = match how.pairs {
        true => packed.flat_map(|p| [2 * p, 2 * p + 1]).collect(),
        false => packed.collect(),
    };
    for d in documents {
        let place = file.document(d)?;
        let n = (place.end - place.start).min(room as u64 + 1) as usize;
        tokens.clear();
        mask.clear();
        file.read(place.start, n, how.vocab_size, &mut tokens)?;
        file.read_mask(place.start, n, &mut mask)?;
        if !row.takes(n) {
            let fact = format!("{}: conversation {d} of {n} tokens is not as it was packed", file.prefix.display());
            return Err(Error::new(Exit::Data, fact).hint("do not change a file that a run has open: write a new one"));
        }
        row.push(&tokens, |at| mask[at] > 0);
    }
    Ok(Sample { pairs, ..row.finish() })
}

/// What can be told of the masks of `corpora` without reading all of them: the template that made one must be the one beside the
/// tokenizer, and a mask that herd has not made must let end tokens count.
///
/// # Errors
/// [`Exit::Data`], with the name of the trap.
pub fn check(corpora: &[Corpus], tokenizer: &Tokenizer) -> Result<()> {
    for corpus in corpora {
        let file = Indexed::look(&corpus.path, |_| IndexExtent::Blocks(8))?;
        match file.sidecar.as_ref().and_then(|s| s.chat.as_ref()) {
            Some(note) => {
                let own = ChatTemplate::of(tokenizer).ok().filter(|t| t.fingerprint() != note.template_xxh3_128);
                if let Some(own) = own {
                    let fact = format!(
                        "{} was made with the template of {}, but beside tokenizer {} lies another ({})",
                        file.prefix.display(),
                        note.template,
                        tokenizer.spec(),
                        own.file()
                    );
                    return Err(Trap::ForeignTemplate.error(fact));
                }
            }
            None => foreign(&file, tokenizer)?,
        }
    }
    Ok(())
}

/// A mask from elsewhere: does anything count, and do the ends of turns?
fn foreign(file: &Indexed, tokenizer: &Tokenizer) -> Result<()> {
    let ends = tokenizer.ends();
    let (mut ids, mut mask, mut met, mut learned) = (Vec::new(), Vec::new(), 0u64, 0u64);
    for d in 0..file.documents().min(LOOKED_AT) {
        let place = file.document(d)?;
        let n = (place.end - place.start) as usize;
        ids.clear();
        mask.clear();
        file.read(place.start, n, 1 << 31, &mut ids)?;
        file.read_mask(place.start, n, &mut mask)?;
        if !mask.iter().skip(1).any(|&m| m > 0) {
            let fact = format!("{}: no token of conversation {d} counts", file.prefix.display());
            return Err(Trap::EmptyMask.error(fact));
        }
        let of_end = ids.iter().zip(&mask).skip(1).filter(|(id, _)| ends.contains(&(**id as u32)));
        of_end.for_each(|(_, &m)| (met, learned) = (met + 1, learned + m as u64));
    }
    match (met, learned) {
        (1.., 0) => {
            let names = ends.iter().map(|&id| tokenizer.decode(&[id])).collect::<Vec<_>>().join(", ");
            let fact = format!("{}: {met} end tokens ({names}), and none of them counts", file.prefix.display());
            Err(Trap::EndNotTrained.error(fact))
        }
        _ => Ok(()),
    }
}
