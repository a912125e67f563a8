//! Which corpora a run draws from, as its checkpoints remember it: what decides, beside seed and batch, which sample comes
//! when.

use serde::{Deserialize, Serialize};

/// The corpora of a run, in the order of the configuration.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct DataNote {
    /// What is trained on.
    pub train: Vec<CorpusNote>,
    /// What validation reads; empty where there is none.
    #[serde(default)]
    pub validation: Vec<CorpusNote>,
}

/// One corpus.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CorpusNote {
    /// As the configuration names it.
    pub path: String,
    /// Share of the draws, relative to the other corpora; its number of samples where the configuration gives none.
    pub weight: f64,
    /// Tokens of all its documents.
    pub tokens: u64,
    /// Documents, by its document index.
    pub documents: u64,
    /// What tells it from others of the same size: [`super::indexed::Indexed::identity`].
    pub content: String,
}

impl CorpusNote {
    /// Whether both hold the same tokens, wherever they lie. Identities of two kinds say nothing about each other: then the
    /// sizes decide.
    pub fn same_content(&self, other: &CorpusNote) -> bool {
        let kind = |c: &CorpusNote| c.content.split(':').next().map(str::to_string);
        let sizes = (self.tokens, self.documents) == (other.tokens, other.documents);
        sizes && (self.content == other.content || kind(self) != kind(other))
    }
}
