//! What `herd data inspect --chat` shows of conversations: which of their tokens count, and what is wrong with the masks.

use crate::data::indexed::{Indexed, Sidecar};
use crate::data::Tokenizer;
use crate::error::Result;
use crate::text::grouped;
use std::fmt::Write;
use std::io::IsTerminal;

/// A line on masks and lengths. `room`: tokens of a sample, which both answers of a preference pair share.
pub fn summary(out: &mut String, file: &Indexed, room: Option<usize>) -> Result<()> {
    let pairs = file.sidecar.as_ref().is_some_and(Sidecar::holds_pairs);
    let (mut mask, mut at, mut empty, mut trained) = (Vec::new(), 0, 0u64, 0u64);
    let (mut long, mut unlearned, mut lost, mut places) = (0u64, 0u64, 0u64, 0);
    for (d, length) in file.document_lengths().enumerate() {
        let length = length?;
        mask.clear();
        file.read_mask(at, length as usize, &mut mask)?;
        at += length;
        let counts = |mask: &[u8]| mask.iter().skip(1).map(|&m| m as u64).sum::<u64>();
        let all = counts(&mask);
        (trained, empty) = (trained + all, empty + (all == 0) as u64);
        let Some(room) = room else { continue };
        if pairs {
            places = if d % 2 == 0 { 0 } else { places } + mask.len().saturating_sub(1);
            long += (d % 2 == 1 && places > room) as u64;
        } else if mask.len() > room + 1 {
            let kept = counts(&mask[..room + 1]);
            (long, lost, unlearned) = (long + 1, lost + all - kept, unlearned + (kept == 0 && all > 0) as u64);
        }
    }
    let share = 100.0 * trained as f64 / file.tokens().max(1) as f64;
    if pairs {
        let _ =
            writeln!(out, "pairs        {}, the chosen answer before the rejected one", grouped(file.documents() / 2));
    }
    let _ = writeln!(out, "counting     {} tokens ({share:.1}%)", grouped(trained));
    let _ = writeln!(out, "empty masks  {}", grouped(empty));
    match room {
        Some(room) if pairs => _ = writeln!(out, "too long     {} pairs for samples of {room}", grouped(long)),
        Some(room) => {
            let _ = writeln!(
                out,
                "too long     {} for samples of {room}: {} counting tokens would be cut off, {} conversations left without one",
                grouped(long),
                grouped(lost),
                grouped(unlearned)
            );
        }
        None => {}
    }
    Ok(())
}

/// The first `count` conversations: on a terminal what counts is green, elsewhere it stands between ⟦ and ⟧.
pub fn show(out: &mut String, file: &Indexed, tokenizer: &Tokenizer, count: usize) -> Result<()> {
    let (on, off) = match std::io::stdout().is_terminal() {
        true => ("\x1b[32m", "\x1b[0m"),
        false => ("⟦", "⟧"),
    };
    let (mut at, mut ids, mut mask) = (0, Vec::new(), Vec::new());
    for (d, length) in file.document_lengths().take(count).enumerate() {
        let length = length?;
        ids.clear();
        mask.clear();
        file.read(at, length as usize, tokenizer.vocab_size(), &mut ids)?;
        file.read_mask(at, length as usize, &mut mask)?;
        at += length;
        let trained = mask.iter().filter(|&&m| m > 0).count();
        let _ = writeln!(out, "── conversation {d}: {length} tokens, {trained} count");
        let tokens: Vec<(u32, u8)> = ids.iter().map(|&id| id as u32).zip(mask.iter().copied()).collect();
        for run in tokens.chunk_by(|a, b| a.1 == b.1) {
            let text = tokenizer.decode(&run.iter().map(|t| t.0).collect::<Vec<_>>());
            match run[0].1 {
                0 => out.push_str(&text),
                _ => _ = write!(out, "{on}{text}{off}"),
            }
        }
        out.push('\n');
    }
    Ok(())
}
