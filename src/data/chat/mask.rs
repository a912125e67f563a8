//! Which tokens of a conversation are the model's own.
//!
//! A template with `{% generation %}` says so itself. For any other the places are found by rendering beginnings: the turn i
//! begins where the messages before it, with the prompt for the next turn, stop agreeing with the whole text, and ends where the
//! messages up to it do. A template that writes an earlier turn otherwise when later ones follow has no such place; that is
//! an error, not a guess.

use super::{ChatTemplate, Conversation};
use crate::data::Tokenizer;
use crate::error::{Error, Exit, Result};
use serde_json::{json, Value};
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
    /// Ids of the whole conversation.
    pub ids: Vec<u32>,
    /// 1 where the model is to learn to write this token, else 0.
    pub mask: Vec<u8>,
    /// The conversation as the template renders it.
    pub text: String,
    /// Of each token, the bytes of `text` that it is; empty for one that was put around the conversation.
    pub places: Vec<Range<usize>>,
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
        false => by_beginnings(template, tokenizer, conversation, &learned)?,
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

fn by_marks(template: &ChatTemplate, c: &Conversation, learned: &[bool]) -> Result<(String, Vec<Range<usize>>)> {
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
    template: &ChatTemplate, tokenizer: &Tokenizer, c: &Conversation, learned: &[bool],
) -> Result<(String, Vec<Range<usize>>)> {
    let text = template.whole(&c.messages, &c.tools, false)?;
    let mut spans: Vec<Range<usize>> = Vec::new();
    for message in (0..c.messages.len()).filter(|&i| learned[i]) {
        let bytes = turn(template, tokenizer, c, message, &text)?;
        let begun = spans.last().map_or(0, |s| s.end);
        if bytes.start < begun || bytes.is_empty() {
            return Err(rewritten(template, message));
        }
        spans.push(bytes);
    }
    Ok((text, spans))
}

/// Bytes of `text`, the whole, that are the model's turn `message`.
fn turn(
    template: &ChatTemplate, tokenizer: &Tokenizer, c: &Conversation, message: usize, text: &str,
) -> Result<Range<usize>> {
    let write = |n: usize, prompt: bool| template.whole(&c.messages[..n], &c.tools, prompt);
    let start = match message {
        0 => behind_prompt(template, text)?,
        n => {
            let asked = write(n, true)?;
            let (same, before) = (common(text, &asked), common(&asked, &write(n, false)?));
            // What stands before the prompt must stand in the whole as well. What a template puts behind a last message, the
            // whole need not have.
            let start = match same < before {
                true => None,
                false if same == asked.len() => Some(same),
                false => other_prompt(tokenizer, text, &asked, before, same)?,
            };
            start.ok_or_else(|| rewritten(template, message))?
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

/// Where the turn begins if the prompt, `asked` from `before` on, stands in `text` only up to `same`: with other white space before
/// it, or up to one of its special tokens (some prompts go on with what the model has not written here). None: neither.
fn other_prompt(tokenizer: &Tokenizer, text: &str, asked: &str, before: usize, same: usize) -> Result<Option<usize>> {
    if let (Some(prompt), Some(rest)) = (asked.get(before..), text.get(before..)) {
        let (prompt, found) = (prompt.trim_start(), rest.trim_start());
        if !prompt.is_empty() && found.starts_with(prompt) {
            return Ok(Some(text.len() - found.len() + prompt.len()));
        }
    }
    let special =
        |(id, place): &(u32, Range<usize>)| tokenizer.is_special(*id) && place.end > before && place.end <= same;
    Ok(tokenizer.encode_places(asked)?.iter().rfind(|t| special(t)).map(|(_, place)| place.end))
}

/// Where the model's turn begins in a conversation that begins with it: behind what a template writes as the prompt for one.
fn behind_prompt(template: &ChatTemplate, text: &str) -> Result<usize> {
    let asked = [json!({ "role": "user", "content": "x" })];
    let (with, without) = (template.whole(&asked, &Value::Null, true)?, template.whole(&asked, &Value::Null, false)?);
    let prompt = with.get(common(&with, &without)..).filter(|p| !p.is_empty());
    prompt.and_then(|p| text.find(p).map(|at| at + p.len())).ok_or_else(|| {
        let fact = format!(
            "a conversation begins with the model, and what the template of {} writes before is not its prompt",
            template.file()
        );
        Error::new(Exit::Data, fact)
            .hint("put {% generation %} into the template, or leave such conversations out with --skip-bad")
    })
}

fn rewritten(template: &ChatTemplate, message: usize) -> Error {
    let fact = format!(
        "the template of {} writes message {} otherwise when other messages follow: where the model's turn is cannot be told",
        template.file(),
        message + 1
    );
    Error::new(Exit::Data, fact)
        .hint("put {% generation %} into the template around what the model writes, or use --loss last")
}

/// Bytes in which both begin alike.
fn common(a: &str, b: &str) -> usize {
    a.bytes().zip(b.bytes()).take_while(|(a, b)| a == b).count()
}

#[cfg(test)]
mod tests;
