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

/// A sample that is being put together: whole documents side by side, none of which sees another.
pub struct SampleRow {
    room: usize,
    ids: Vec<i64>,
    targets: Vec<i64>,
    starts: Vec<usize>,
}

impl SampleRow {
    /// An empty one of `room` places.
    pub fn new(room: usize) -> SampleRow {
        SampleRow { room, ids: Vec::with_capacity(room + 1), targets: Vec::with_capacity(room), starts: Vec::new() }
    }

    /// Whether a document of so many tokens has room: it takes one place less.
    pub fn takes(&self, tokens: usize) -> bool {
        tokens >= 2 && self.ids.len() + tokens - 1 <= self.room
    }

    /// Adds a document that has room: its tokens but the last are inputs, but the first targets where `counts` says so of their place
    /// in it.
    pub fn push(&mut self, tokens: &[i64], counts: impl Fn(usize) -> bool) {
        self.starts.push(self.ids.len());
        self.ids.extend(&tokens[..tokens.len() - 1]);
        self.targets.extend((1..tokens.len()).map(|at| if counts(at) { tokens[at] } else { -1 }));
    }

    /// What is left is filled with token 0, which does not count; it is a document of its own.
    pub fn finish(mut self) -> Sample {
        if self.ids.len() < self.room {
            self.starts.push(self.ids.len());
        }
        self.starts.retain(|&s| s > 0);
        self.ids.resize(self.room + 1, 0);
        self.targets.resize(self.room, -1);
        Sample { ids: self.ids, starts: self.starts, targets: Some(self.targets), pairs: Vec::new() }
    }
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
