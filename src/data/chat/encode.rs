//! Rows of conversations to masked tokens, on several threads at once, with a look for what spoils a training in silence.

use super::{forms, mask, pairs, ChatForm, ChatNote, ChatTemplate, Conversation, Counted, MaskedTokens, Trap};
use crate::data::pipeline::{Encode, IdsAndMask};
use crate::data::Tokenizer;
use crate::error::{Error, Exit, Result};
use crate::threads::lock;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, MutexGuard};

/// How conversations become tokens.
#[derive(Clone, Debug)]
pub struct ChatRules {
    /// Which of the model's turns count in the loss.
    pub counted: Counted,
    /// Put before each conversation; the template decides without it.
    pub front: Option<u32>,
    /// Appended to each conversation; counts where the last turn does.
    pub eos: Option<u32>,
    /// Traps that are let pass.
    pub allowed: Vec<Trap>,
    /// Leave out rows that cannot be read or that a template refuses, and such without a token that counts.
    pub skip_bad: bool,
}

/// What was met.
#[derive(Clone, Debug, Default)]
pub struct ChatTally {
    /// Conversations or pairs that became tokens, by the form of their rows.
    pub forms: BTreeMap<ChatForm, u64>,
    /// Whether the rows are preference pairs; `None` before the first.
    pub pairs: Option<bool>,
    /// Rows left out.
    pub skipped: u64,
    /// What was wrong with the first row left out; `None` where none was.
    pub first_skipped: Option<String>,
    /// Conversations in whose messages the name of a special token stands, which became the token.
    pub named: u64,
    /// The name that was met first; `None` where none was.
    pub first_name: Option<String>,
    /// Conversations of each trap that was let pass.
    pub allowed: BTreeMap<Trap, u64>,
    /// Tokens that end a turn that counts.
    pub ends: BTreeSet<u32>,
}

/// Why a row gives no tokens.
struct BadRow {
    /// Where it is a trap that spoiled it.
    trap: Option<Trap>,
    error: Box<Error>,
}

impl From<Error> for BadRow {
    fn from(error: Error) -> BadRow {
        BadRow { trap: None, error: Box::new(error) }
    }
}

type Checked<T> = std::result::Result<T, BadRow>;

/// Makes tokens and mask of rows.
pub struct ChatEncoder<'a> {
    tokenizer: &'a Tokenizer,
    template: &'a ChatTemplate,
    rules: ChatRules,
    tally: Mutex<ChatTally>,
}

impl<'a> ChatEncoder<'a> {
    /// Encodes with `tokenizer` what `template` writes; nothing has been met yet.
    pub fn new(tokenizer: &'a Tokenizer, template: &'a ChatTemplate, rules: ChatRules) -> ChatEncoder<'a> {
        ChatEncoder { tokenizer, template, rules, tally: Mutex::default() }
    }

    /// What was met so far.
    pub fn tally(&self) -> ChatTally {
        self.locked().clone()
    }

    /// For the sidecar.
    pub fn note(&self) -> ChatNote {
        let tally = self.locked();
        ChatNote {
            template: self.template.file().into(),
            template_xxh3_128: self.template.fingerprint(),
            forms: tally.forms.keys().map(|f| f.to_string()).collect(),
            loss: match self.rules.counted {
                Counted::All => "all".into(),
                Counted::Last => "last".into(),
            },
            ends: tally.ends.iter().copied().collect(),
            pairs: tally.pairs == Some(true),
        }
    }

    /// Tokens and mask of one conversation; traps that are not allowed are errors.
    fn tokens(&self, conversation: &Conversation) -> Checked<MaskedTokens> {
        let mut made = mask::tokens(self.template, self.tokenizer, conversation, self.rules.counted)?;
        self.around(&mut made)?;
        self.end_of_turns(&made)?;
        if !made.mask.iter().skip(1).any(|&m| m > 0) {
            self.trap(Trap::EmptyMask, || "no token of the conversation counts".into())?;
        }
        Ok(made)
    }

    fn locked(&self) -> MutexGuard<'_, ChatTally> {
        lock(&self.tally)
    }

    fn trap(&self, trap: Trap, fact: impl FnOnce() -> String) -> Checked<()> {
        match self.rules.allowed.contains(&trap) {
            true => {
                *self.locked().allowed.entry(trap).or_default() += 1;
                Ok(())
            }
            false => Err(BadRow { trap: Some(trap), error: Box::new(trap.error(fact())) }),
        }
    }

    /// Puts what was asked for around the conversation, and sees that beginning-of-text stands there once.
    fn around(&self, made: &mut MaskedTokens) -> Checked<()> {
        if let Some(front) = self.rules.front {
            made.ids.insert(0, front);
            made.mask.insert(0, 0);
            made.places.insert(0, 0..0);
        }
        if let Some(eos) = self.rules.eos {
            let end = made.text.len();
            made.mask.push(made.mask.last().copied().unwrap_or(0));
            made.ids.push(eos);
            made.places.push(end..end);
        }
        let bos = self.tokenizer.bos().or(self.rules.front);
        if let Some(bos) = bos.filter(|bos| made.ids.windows(2).any(|pair| pair == [*bos; 2])) {
            let name = self.tokenizer.decode(&[bos]);
            self.trap(Trap::DoubleBos, || format!("{name} stands twice, one behind the other"))?;
        }
        Ok(())
    }

    /// Each run of tokens that count must end with a special token, white space aside: else nothing teaches the model to stop.
    fn end_of_turns(&self, made: &MaskedTokens) -> Checked<()> {
        let blank = |i: usize| {
            let place = &made.places[i];
            !place.is_empty() && made.text[..].get(place.clone()).is_some_and(|t| t.trim().is_empty())
        };
        let mut at = 0;
        while at < made.ids.len() {
            if made.mask[at] == 0 {
                at += 1;
                continue;
            }
            let run = made.mask[at..].iter().take_while(|&&m| m > 0).count();
            let last = (at..at + run).rev().find(|&i| !blank(i));
            match last.map(|i| (i, made.ids[i])) {
                Some((_, id)) if self.tokenizer.is_special(id) || self.tokenizer.eos() == Some(id) => {
                    self.locked().ends.insert(id);
                }
                Some((i, _)) => self.no_end(&made.text[..made.places[i].end])?,
                None => self.no_end("")?,
            }
            at += run;
        }
        Ok(())
    }

    /// A turn that ends with `before`: the template may have written the name of another model's token.
    fn no_end(&self, before: &str) -> Checked<()> {
        let name = before.ends_with('>').then(|| before.rfind('<').map(|at| &before[at..])).flatten();
        match name.filter(|name| self.template.spells(name) && !name.contains(char::is_whitespace)) {
            Some(name) => self.trap(Trap::ForeignTemplate, || {
                let (file, tokenizer) = (self.template.file(), self.tokenizer.spec());
                format!(
                    "the template of {file} ends a turn with {name}, which tokenizer {tokenizer} has not as a token"
                )
            }),
            None => self.trap(Trap::EndNotTrained, || {
                let end: String = before.chars().rev().take(20).collect::<Vec<_>>().into_iter().rev().collect();
                format!("a turn that counts ends with {end:?}, and no end token behind it counts")
            }),
        }
    }

    /// Looks for names of special tokens in what people wrote.
    fn named(&self, conversation: &Conversation) -> Option<String> {
        let texts = conversation.messages.iter().filter_map(|m| m["content"].as_str());
        let mut texts = texts.filter(|text| text.contains(['<', '[']));
        texts.find_map(|text| {
            let special = |&id: &u32| self.tokenizer.is_special(id);
            let id = self.tokenizer.encode_special(text).ok()?.into_iter().find(special)?;
            Some(self.tokenizer.decode(&[id]))
        })
    }

    fn row(&self, text: &str) -> Checked<Read> {
        let bad = |what: String| Error::new(Exit::Data, what);
        let row = forms::row(text).map_err(bad)?;
        let pair = pairs::is_pair(&row);
        let conversations = match pair {
            true => pairs::read(&row).map(|p| vec![p.chosen, p.rejected]),
            false => forms::read(&row).map(|c| vec![c]),
        };
        let conversations = conversations.map_err(bad)?;
        let made = conversations.iter().map(|c| self.tokens(c)).collect::<Checked<Vec<_>>>()?;
        if pair && made[0].ids == made[1].ids {
            self.trap(Trap::SameAnswers, || "chosen and rejected are the same tokens".into())?;
        }
        let name = conversations.iter().find_map(|c| self.named(c));
        Ok(Read { form: conversations[0].form, name, documents: made.into_iter().map(|m| (m.ids, m.mask)).collect() })
    }

    /// A corpus is of pairs or of conversations.
    fn of_one_kind(&self, form: ChatForm, tally: &mut ChatTally) -> Result<()> {
        match *tally.pairs.get_or_insert(form.is_pair()) == form.is_pair() {
            true => Ok(()),
            false => Err(Error::new(Exit::Data, "preference pairs and conversations in one corpus")
                .hint("give each a corpus of its own")),
        }
    }
}

/// A row that became tokens.
struct Read {
    form: ChatForm,
    /// The name of a special token in its messages.
    name: Option<String>,
    documents: Vec<IdsAndMask>,
}

impl Encode for ChatEncoder<'_> {
    fn encode(&self, row: &str) -> Result<Vec<IdsAndMask>> {
        let read = match self.row(row) {
            Ok(read) => read,
            // What is wrong with every conversation alike is not left out one by one.
            Err(bad) if self.rules.skip_bad && bad.trap != Some(Trap::ForeignTemplate) => {
                let mut tally = self.locked();
                tally.skipped += 1;
                tally.first_skipped.get_or_insert(bad.error.fact);
                return Ok(Vec::new());
            }
            Err(bad) => return Err(*bad.error),
        };
        let mut tally = self.locked();
        self.of_one_kind(read.form, &mut tally)?;
        *tally.forms.entry(read.form).or_default() += 1;
        if let Some(name) = read.name {
            tally.named += 1;
            tally.first_name.get_or_insert(name);
        }
        Ok(read.documents)
    }

    fn noun(&self) -> Option<&'static str> {
        Some("conversation")
    }
}

#[cfg(test)]
mod tests;
