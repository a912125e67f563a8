//! Conversations into tokens of which some are trained on: which forms files have ([`forms`]), preference pairs
//! ([`pairs`]), what a model's own template makes of a conversation ([`template`]), which of the tokens are the model's turns ([`mask`]), and what is refused because it
//! would spoil a training in silence ([`traps`]). `docs/finetuning.md` is for users.

mod encode;
mod forms;
mod jinja;
mod mask;
mod pairs;
mod sidecar;
mod template;
mod traps;

pub use encode::{ChatEncoder, ChatRules, ChatTally};
pub use forms::{ChatForm, Conversation};
pub use mask::{tokens, Counted, MaskedTokens};
pub use pairs::PreferencePair;
pub use sidecar::ChatNote;
pub use template::ChatTemplate;
pub use traps::Trap;
