//! What spoils a training and shows in no loss curve. Each has a name, which `--allow` takes and docs/finetuning.md explains.

use crate::error::{Error, Exit};
use std::fmt;

/// A mistake in data that can be trained on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum)]
pub enum Trap {
    /// No token of a conversation counts
    EmptyMask,
    /// Beginning-of-text stands twice
    DoubleBos,
    /// A turn that counts ends without an end token that counts: the model never learns to stop
    EndNotTrained,
    /// The template writes token names that the tokenizer does not have
    ForeignTemplate,
    /// A conversation is cut before its first token that counts
    CutBeforeTrained,
    /// The chosen and the rejected answer of a pair are the same
    SameAnswers,
}

impl Trap {
    /// Every trap, in order of declaration.
    pub const ALL: [Trap; 6] = [
        Trap::EmptyMask,
        Trap::DoubleBos,
        Trap::EndNotTrained,
        Trap::ForeignTemplate,
        Trap::CutBeforeTrained,
        Trap::SameAnswers,
    ];

    /// The refusal: `fact` says where and what.
    pub fn error(self, fact: impl fmt::Display) -> Error {
        Error::new(Exit::Data, format!("{fact} (trap {self})")).hint(self.hint())
    }

    fn hint(self) -> &'static str {
        match self {
            Trap::EmptyMask => {
                "it has no turn of the model, or only some of weight 0: leave such conversations out with --skip-bad"
            }
            Trap::DoubleBos => "the template writes it already: leave --bos out, and take it out of the texts",
            Trap::EndNotTrained => {
                "append an end token with --eos, or let the template's {% generation %} block reach behind it"
            }
            Trap::ForeignTemplate => "give the template of this tokenizer's own model, with --template or beside it",
            Trap::CutBeforeTrained => {
                "raise data.sequence_length, or leave long ones out with data.chat.too_long: drop"
            }
            Trap::SameAnswers => "such a pair teaches nothing: leave it out with --skip-bad",
        }
    }
}

impl fmt::Display for Trap {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(match self {
            Trap::EmptyMask => "empty-mask",
            Trap::DoubleBos => "double-bos",
            Trap::EndNotTrained => "end-not-trained",
            Trap::ForeignTemplate => "foreign-template",
            Trap::CutBeforeTrained => "cut-before-trained",
            Trap::SameAnswers => "same-answers",
        })
    }
}
