//! What a sample is, and how samples are cut from corpora.

use crate::config::ChatSection;

/// One sample.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sample {
    /// S + 1 ids; the first S are the input, the last S the targets.
    pub ids: Vec<i64>,
    /// Where among the input another document begins, ascending, 0 left out: by the corpus's document index. Empty where
    /// [`Cutting::documents`] is false.
    pub starts: Vec<usize>,
    /// Of conversations: S targets, −1 where one does not count; the last of the ids is none then.
    pub targets: Option<Vec<i64>>,
    /// The preference pairs in it, in order: documents 2·n and 2·n + 1 are the chosen and the rejected conversation of the n-th.
    /// Empty where [`Cutting::pairs`] is false.
    pub pairs: Vec<PairId>,
}

/// A preference pair of a list of corpora.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PairId {
    /// Place of its corpus in the list.
    pub corpus: usize,
    /// Its number there.
    pub number: u64,
}

/// How samples are cut from corpora.
#[derive(Clone, Copy, Debug)]
pub struct Cutting {
    /// S: a sample has S + 1 ids.
    pub sequence_length: usize,
    /// Seed of the order of samples, and of which conversations share one.
    pub seed: u64,
    /// The model's: ids are below it.
    pub vocab_size: usize,
    /// Whether [`Sample::starts`] is asked for: only then the index of a corpus is read.
    pub documents: bool,
    /// The corpora are conversations.
    pub chat: Option<ChatSection>,
    /// The conversations are preference pairs: of two that follow each other the first is the chosen one. Pairs stay together.
    pub pairs: bool,
}
