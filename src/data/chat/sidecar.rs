//! What the sidecar of a token file says of the conversations in it.

use serde::{Deserialize, Serialize};

/// How a loss mask came to be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChatNote {
    /// The file of the template.
    pub template: String,
    /// xxh3-128 of its source, 32 hexadecimal digits.
    pub template_xxh3_128: String,
    /// Forms of the rows, as `herd data chat` names them.
    pub forms: Vec<String>,
    /// Which turns count: `all` of the model's, or its `last`.
    pub loss: String,
    /// Ids that end a turn that counts, ascending.
    pub ends: Vec<u32>,
    /// The documents are preference pairs: number 2·p is the chosen conversation of pair p, the next one the rejected.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub pairs: bool,
}
