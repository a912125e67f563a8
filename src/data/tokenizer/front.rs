//! What stands in front of a text. That is the tokenizer's own business: models differ in it, and one that was not trained
//! with a beginning-of-text token writes other text behind one.
//!
//! The post-processor of a `tokenizer.json` decides, as for transformers 5, which passes over `add_bos_token` in a
//! `tokenizer_config.json` beside it. A tiktoken `tokenizer.model` has no post-processor: there `add_bos_token` counts, and
//! without it Llama 3's own rule.

use super::{Kind, Tokenizer};
use crate::error::{Error, Exit, Result};
use serde_json::Value;

/// Whose word counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bos {
    /// The tokenizer's.
    Own,
    /// The user's: beginning-of-text, whatever the tokenizer does.
    Always,
    /// The user's: this token, of its special ones.
    Token(u32),
    /// The user's: nothing.
    Never,
}

impl Bos {
    /// From the two flags of a command.
    pub fn from_flags(always: bool, never: bool) -> Bos {
        match (always, never) {
            (_, true) => Bos::Never,
            (true, false) => Bos::Always,
            (false, false) => Bos::Own,
        }
    }
}

/// The ids in front of each text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Front {
    /// In the order in which they stand; empty where nothing does.
    pub ids: Vec<u32>,
    /// What they are and who says so, for one line.
    pub says: String,
}

impl Tokenizer {
    /// Errors ([`Exit::Data`]): beginning-of-text is asked for, and the tokenizer has none.
    pub fn front(&self, bos: Bos) -> Result<Front> {
        let (ids, who) = match (bos, self.bos) {
            (Bos::Never, _) => (Vec::new(), "as asked for".to_string()),
            (Bos::Token(id), _) | (Bos::Always, Some(id)) => (vec![id], "as asked for".to_string()),
            (Bos::Always, None) => {
                return Err(Error::new(Exit::Data, format!("tokenizer {} names no beginning-of-text token", self.spec))
                    .hint("put a tokenizer_config.json with bos_token beside it"))
            }
            (Bos::Own, bos) => self.own_front(bos),
        };
        let what = match ids.is_empty() {
            true => "nothing".to_string(),
            false => format!("{} {ids:?}", self.decode(&ids)),
        };
        Ok(Front { ids, says: format!("{what} in front, {who}") })
    }

    fn own_front(&self, bos: Option<u32>) -> (Vec<u32>, String) {
        let asked = self.add_bos_token();
        match &self.kind {
            Kind::Bytes => (Vec::new(), "the rule of `bytes`".into()),
            Kind::Tiktoken(_) => match asked {
                Some(false) => (Vec::new(), "by add_bos_token false in tokenizer_config.json".into()),
                Some(true) => (bos.into_iter().collect(), "by add_bos_token true in tokenizer_config.json".into()),
                None => (bos.into_iter().collect(), "Llama 3's rule (a tokenizer.model has none of its own)".into()),
            },
            Kind::HuggingFace(t) => {
                let mut who = "by the post-processor of tokenizer.json".to_string();
                if let Some(asked) = asked.filter(|asked| *asked == t.front.is_empty()) {
                    who += &format!(
                        "; add_bos_token {asked} in tokenizer_config.json is passed over, as by transformers 5"
                    );
                }
                if !t.behind.is_empty() {
                    who += &format!("; {}, which it puts behind, is left out", self.decode(&t.behind));
                }
                (t.front.clone(), who)
            }
        }
    }

    /// `add_bos_token` of the `tokenizer_config.json` beside it.
    fn add_bos_token(&self) -> Option<bool> {
        let files = match &self.kind {
            Kind::Bytes => return None,
            Kind::HuggingFace(t) => &t.files,
            Kind::Tiktoken(t) => t.beside(),
        };
        let (_, content) = files.iter().find(|(name, _)| name == "tokenizer_config.json")?;
        serde_json::from_slice::<Value>(content).ok()?["add_bos_token"].as_bool()
    }
}
