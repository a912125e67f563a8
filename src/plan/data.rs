//! Whether the tokenizer and the corpora of a plan are there and fit it: what a start of the run would find, all at once.

use super::{check_vocabulary, Plan};
use crate::config::{to_error, Config, Corpus, Problem, RunTrap};
use crate::data::overlap::Overlap;
use crate::data::{conversations, Mixture, Tokenizer};
use crate::error::{Error, Exit, Result};
use crate::text::binary;
use std::fmt::Display;
use std::slice;

/// Opens the tokenizer and every corpus, and compares them with the model and with each other. Returns what the run would
/// train on, a line a corpus.
///
/// # Errors
/// Everything that is missing or does not fit, with `place` (the configuration) before it; [`crate::error::Exit::Data`]
/// unless it is the filesystem that refused.
pub fn check_data(plan: &Plan, place: impl Display) -> Result<String> {
    let data = &plan.config.data;
    let mut problems = Vec::new();
    let mut wrong = |key: String, e: Error| {
        let problem = Problem::new([key], e.fact).exit(e.exit);
        problems.push(e.hint.into_iter().fold(problem, Problem::hint));
    };
    let tokenizer = Tokenizer::open(&data.tokenizer).map_err(|e| wrong("data.tokenizer".into(), e)).ok();
    if let Some(t) = &tokenizer {
        let fits = check_vocabulary(&plan.model, t.vocab_size(), &data.tokenizer);
        let _ = fits.map_err(|e| wrong("data.tokenizer".into(), e));
    }
    if let (Some(t), true) = (&tokenizer, data.chat.is_some()) {
        let masks = |list: &[Corpus]| conversations::check(list, t);
        let _ = masks(&data.train).map_err(|e| wrong("data.train".into(), e));
        let _ = masks(&data.validation).map_err(|e| wrong("data.validation".into(), e));
    }
    let fingerprint = tokenizer.map(|t| t.fingerprint());
    let open = |corpora: &[Corpus]| Mixture::open(corpora, plan.cutting(), fingerprint.as_deref());
    let mut train = String::new();
    for (key, corpora) in [("data.train", &data.train), ("data.validation", &data.validation)] {
        let mut whole = true;
        for (i, corpus) in corpora.iter().enumerate() {
            // Its weight is looked at with the whole list.
            if let Err(e) = open(slice::from_ref(&Corpus { weight: None, ..corpus.clone() })) {
                wrong(format!("{key}.{i}.path"), e);
                whole = false;
            }
        }
        if !whole || corpora.is_empty() {
            continue;
        }
        match open(corpora) {
            Ok(mixture) if key == "data.train" => train = mixture.describe(),
            Ok(_) => {}
            Err(e) => wrong(key.into(), e),
        }
    }
    if problems.is_empty() {
        match check_held_out(&plan.config, plan.model.vocab_size, AT_A_CHECK) {
            Ok(Some(note)) => train = format!("{train}\n{note}"),
            Ok(None) => {}
            Err(e) => problems.push(e.hint.into_iter().fold(Problem::new([""], e.fact).exit(e.exit), Problem::hint)),
        }
    }
    match problems.is_empty() {
        true => Ok(train),
        false => Err(to_error(place, &problems)),
    }
}

/// Bytes of training data that `herd config check` reads for held-out conversations.
const AT_A_CHECK: u64 = 4 << 30;
/// Bytes of training data that the start of a run reads for them.
pub const AT_A_START: u64 = 256 << 20;

/// Whether held-out conversations are trained on; what is to be said where that was not looked at. Running text is not compared: its
/// documents are many, and few are evaluated on.
///
/// # Errors
/// [`Exit::Data`]: some are.
pub fn check_held_out(config: &Config, vocab_size: usize, most: u64) -> Result<Option<String>> {
    let (data, trap) = (&config.data, RunTrap::HeldOutInTraining);
    if data.chat.is_none() || data.validation.is_empty() || config.train.allow.contains(&trap) {
        return Ok(None);
    }
    let found = Overlap::find(&data.train, &data.validation, vocab_size, most)?;
    if let Some(fact) = found.fact() {
        let hint = format!("leave them out on one side, {}", trap.hint());
        return Err(Error::new(Exit::Data, format!("data.validation: {fact} (trap {})", trap.name())).hint(hint));
    }
    Ok(found.too_much.map(|bytes| {
        let (is, read) = (binary(bytes), binary(most));
        format!("held-out conversations were not looked for in the training data, which has {is} of tokens: {read} are read at most")
    }))
}
