//! Which tokens of a conversation are the model's own.
//!
//! A template with `{% generation %}` says so itself. For any other the places are found by rendering beginnings: the turn i
//! begins where the messages before it, with the prompt for the next turn, stop agreeing with the whole text, and ends where the
//! messages up to it do. A template that writes an earlier turn otherwise when later ones follow has no such place; that is
//! an error, not a guess.

use super::{ChatTemplate, Conversation};
use crate::data::Tokenizer;
use crate::error::{Error, Exit, Result};
use std::ops::Range;

/// Which of the model's turns count.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Counted {
    /// Every turn of the model
    All,
    /// Its last turn
    Last,
}

/// A conversation as tokens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MaskedTokens {
    pub ids: Vec<u32>,
    /// 1 where the model is to learn to write this token, else 0.
    pub mask: Vec<u8>,
    /// What the tokens are of the text.
    pub text: String,
    pub places: Vec<Range<usize>>,
}

/// A turn of the model in the text.
struct TurnSpan {
    message: usize,
    bytes: Range<usize>,
}

/// Tokens and mask of `conversation`.
///
/// Errors ([`Exit::Data`]): the template refuses the messages, or the turns cannot be told apart in what it writes.
pub fn tokens(
    template: &ChatTemplate, tokenizer: &Tokenizer, conversation: &Conversation, counted: Counted,
) -> Result<MaskedTokens> {
    let learned = learned(conversation, counted);
    let marks = template.marks();
    let (text, spans) = match marks {
        true => by_marks(template, conversation, &learned)?,
        false => by_beginnings(template, conversation, &learned)?,
    };
    let (ids, places): (Vec<u32>, Vec<Range<usize>>) = tokenizer.encode_places(&text)?.into_iter().unzip();
    let mut mask = vec![0; ids.len()];
    for span in spans {
        // As transformers: from the token of the first character to that of the last. What only begins in a turn that was
        // found by comparison may be the next one's header.
        let inside = |p: &Range<usize>| match marks {
            true => p.start < span.end && p.end > span.start,
            false => p.end > span.start && p.end <= span.end && p.start < span.end,
        };
        let first = places.iter().position(inside);
        if let (Some(first), Some(last)) = (first, places.iter().rposition(inside)) {
            mask[first..=last].fill(1);
        }
    }
    Ok(MaskedTokens { ids, mask, text, places })
}

/// Of each message, whether it counts.
fn learned(conversation: &Conversation, counted: Counted) -> Vec<bool> {
    let mut learned = conversation.learned.clone();
    if counted == Counted::Last {
        let last = conversation.messages.iter().rposition(|m| m["role"] == "assistant");
        learned.iter_mut().enumerate().for_each(|(i, l)| *l &= Some(i) == last);
    }
    learned
}

fn by_marks(
    template: &ChatTemplate, c: &Conversation, learned: &[bool],
) -> Result<(String, Vec<Range<usize>>)> {
    let rendered = template.marked(&c.messages, &c.tools)?;
    let assistants = c.messages.iter().zip(learned).filter(|(m, _)| m["role"] == "assistant");
    if assistants.clone().all(|(_, &counts)| counts) {
        return Ok((rendered.text, rendered.generated));
    }
    // Whose block it is, the beginnings of the text say.
    let mut ends = Vec::new();
    for (i, _) in c.messages.iter().enumerate().filter(|(_, m)| m["role"] == "assistant") {
        let up_to = template.whole(&c.messages[..=i], &c.tools, false)?;
        ends.push((i, common(&rendered.text, &up_to)));
    }
    let of = |block: &Range<usize>| ends.iter().find(|(_, end)| block.start < *end).or(ends.last()).map(|(i, _)| *i);
    let kept = rendered.generated.iter().filter(|block| of(block).is_some_and(|i| learned[i])).cloned().collect();
    Ok((rendered.text, kept))
}

fn by_beginnings(
    template: &ChatTemplate, c: &Conversation, learned: &[bool],
) -> Result<(String, Vec<Range<usize>>)> {
    let text = template.whole(&c.messages, &c.tools, false)?;
    let mut spans: Vec<TurnSpan> = Vec::new();
    for message in (0..c.messages.len()).filter(|&i| learned[i]) {
        let bytes = turn(template, c, message, &text)?;
        let begun = spans.last().map_or(0, |s| s.bytes.end);
        if bytes.start < begun || bytes.is_empty() {
            return Err(rewritten(template, message));
        }
        spans.push(TurnSpan { message, bytes });
    }
    debug_assert!(spans.windows(2).all(|w| w[0].message < w[1].message));
    Ok((text, spans.into_iter().map(|s| s.bytes).collect()))
}

/// Bytes of `text`, the whole, that are the model's turn `message`.
fn turn(template: &ChatTemplate, c: &Conversation, message: usize, text: &str) -> Result<Range<usize>> {
    let write = |n: usize, prompt: bool| template.whole(&c.messages[..n], &c.tools, prompt);
    let start = match message {
        // Most templates refuse to write nothing at all.
        0 => write(0, true).map_or(0, |asked| common(text, &asked)),
        n => {
            let asked = write(n, true)?;
            let start = common(text, &asked);
            // What stands before the prompt must stand in the whole as well. What a template puts behind a last message, the
            // whole need not have.
            if start < common(&asked, &write(n, false)?) {
                return Err(rewritten(template, message));
            }
            start
        }
    };
    if message + 1 == c.messages.len() {
        return Ok(start..text.len());
    }
    let (closed, asked) = (write(message + 1, false)?, write(message + 1, true)?);
    let end = common(text, &closed);
    if end < common(&closed, &asked) {
        return Err(rewritten(template, message));
    }
    Ok(start..end)
}

fn rewritten(template: &ChatTemplate, message: usize) -> Error {
    let fact = format!(
        "the template of {} writes message {} otherwise when other messages follow: where the model's turn is cannot be told",
        template.file(),
        message + 1
    );
    Error::new(Exit::Data, fact).hint("put {% generation %} into the template around what the model writes, or use --loss last")
}

/// Bytes in which both begin alike.
fn common(a: &str, b: &str) -> usize {
    a.bytes().zip(b.bytes()).take_while(|(a, b)| a == b).count()
}

#[cfg(test)]
mod tests;
