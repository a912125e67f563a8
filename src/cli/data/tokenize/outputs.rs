//! The token files that `herd data tokenize` and `herd data chat` write.

use super::super::claim;
use crate::cli::progress::shown_by;
use crate::data::chat::ChatNote;
use crate::data::indexed::{prefix_of, with_ending, IndexedWriter, IndexedWritten, Sidecar, TokenizerNote};
use crate::data::pipeline::{self, Account, BatchJob, Encoded, Part};
use crate::error::{Error, Exit, Result};
use crate::progress::Meter;
use std::path::{Path, PathBuf};

/// What a command was asked for.
pub struct Wanted<'a> {
    pub inputs: &'a [String],
    pub tokenizer: &'a str,
    pub output: &'a Path,
    pub holdout: f64,
    pub force: bool,
    /// With a loss mask.
    pub masked: bool,
    /// Why there may be no document at all.
    pub hint: &'static str,
}

/// One file of the result.
struct Output {
    part: Option<Part>,
    prefix: PathBuf,
    writer: IndexedWriter,
    text_bytes: u64,
}

/// The files that are being written.
pub struct Outputs(Vec<Output>);

impl Outputs {
    /// Starts them, when [`claim::check`] allows it.
    pub fn create(args: &Wanted, vocab_size: usize) -> Result<Outputs> {
        let prefix = prefix_of(args.output);
        if prefix.file_name().is_none() || args.output.to_string_lossy().ends_with('/') {
            return Err(Error::new(Exit::Usage, format!("--output {} names no file", args.output.display()))
                .hint("give a prefix, e.g. data/corpus"));
        }
        let parts: &[(Option<Part>, &str)] = match args.holdout > 0.0 {
            true => &[(Some(Part::Train), "_train"), (Some(Part::Validation), "_validation")],
            false => &[(None, "")],
        };
        let prefixes = parts.iter().map(|(part, ending)| (*part, with_ending(&prefix, ending)));
        let prefixes: Vec<_> = prefixes.collect();
        let inputs: Vec<&str> = args.inputs.iter().map(String::as_str).chain([args.tokenizer]).collect();
        prefixes.iter().try_for_each(|(_, p)| claim::check(p, &inputs, args.force))?;
        if let Some(dir) = prefix.parent().filter(|d| !d.as_os_str().is_empty()) {
            std::fs::create_dir_all(dir).map_err(|e| Error::io(dir, "create", &e, Exit::Storage))?;
        }
        let open = |(part, prefix): (Option<Part>, PathBuf)| {
            let writer = match args.masked {
                true => IndexedWriter::create_masked(&prefix, vocab_size)?,
                false => IndexedWriter::create(&prefix, vocab_size)?,
            };
            Ok(Output { part, writer, prefix, text_bytes: 0 })
        };
        Ok(Outputs(prefixes.into_iter().map(open).collect::<Result<_>>()?))
    }

    /// Runs `job`, whose progress `meter` shows, and writes its documents, each of which `see` is shown. Returns what became of
    /// each input.
    pub fn fill(&mut self, job: &BatchJob, meter: &Meter, mut see: impl FnMut(&Encoded)) -> Result<Vec<Account>> {
        shown_by(meter, || {
            pipeline::run(job, |document| {
                see(&document);
                self.push(&document)?;
                meter.tokens(self.tokens());
                Ok(())
            })
        })
    }

    fn push(&mut self, document: &Encoded) -> Result<()> {
        for o in self.0.iter_mut().filter(|o| o.part.is_none_or(|p| p == document.part)) {
            o.writer.push_masked(&document.ids, &document.mask)?;
            o.text_bytes += document.text_bytes;
        }
        Ok(())
    }

    pub fn tokens(&self) -> u64 {
        self.0.iter().map(|o| o.writer.tokens()).sum()
    }

    /// Refuses an empty result, then commits.
    pub fn finish(
        self, args: &Wanted, tokenizer: TokenizerNote, chat: Option<ChatNote>, accounts: &[Account],
    ) -> Result<Vec<(PathBuf, Sidecar)>> {
        let documents: u64 = self.0.iter().map(|o| o.writer.documents()).sum();
        if documents == 0 {
            return Err(nothing(args, accounts));
        }
        if let Some(o) = self.0.iter().find(|o| o.writer.documents() == 0) {
            let fact =
                format!("--holdout {} of {documents} documents leaves none for {}", args.holdout, o.prefix.display());
            return Err(Error::new(Exit::Data, fact).hint(
                "documents are held out whole: cut them smaller with --split-documents, or hold out a larger share",
            ));
        }
        let commit = |o: Output| {
            let split = match o.part {
                None => "all",
                Some(Part::Train) => "train",
                Some(Part::Validation) => "validation",
            };
            let about = IndexedWritten {
                tokenizer: tokenizer.clone(),
                chat: chat.clone(),
                sources: args.inputs.to_vec(),
                split: split.into(),
                holdout: args.holdout,
                text_bytes: o.text_bytes,
            };
            Ok((o.prefix, o.writer.finish(about)?))
        };
        self.0.into_iter().map(commit).collect()
    }
}

/// Why there is no document at all.
fn nothing(args: &Wanted, accounts: &[Account]) -> Error {
    let (skipped, empty): (u64, u64) = accounts.iter().fold((0, 0), |(s, e), a| (s + a.skipped, e + a.empty));
    let fact = format!("no document in {} ({skipped} skipped as bad, {empty} without text)", args.inputs.join(", "));
    let hint = match accounts.iter().find_map(|a| a.first_skipped.as_ref()) {
        Some(first) => format!("the first that was skipped: {first}"),
        None if empty > 0 => args.hint.into(),
        None => "the inputs are empty".into(),
    };
    Error::new(Exit::Data, fact).hint(hint)
}
