//! What a run reads: rank 0 opens and checks the tokenizer and every corpus; the other ranks are told what it found. A rank
//! opens a corpus when it reads its first sample of it.

use crate::checkpoint::Team;
use crate::config::Corpus;
use crate::data::identity::DataNote;
use crate::data::tokenizer::TokenizerFacts;
use crate::data::{conversations, CorpusFacts, Mixture, Tokenizer};
use crate::error::{Error, Exit, Result};
use crate::plan::{self, Plan};
use crate::run_dir::RunDir;
use crate::world::World;
use rustix::process::{getrlimit, setrlimit, Resource};
use serde::{Deserialize, Serialize};
use std::time::Instant;

/// Tokenizer and corpora of a run.
pub struct RunData {
    pub tokenizer: TokenizerFacts,
    /// The tokenizer itself, on rank 0.
    pub opened: Option<Tokenizer>,
    pub corpus: Mixture,
    pub held_out: Option<Mixture>,
}

#[derive(Serialize, Deserialize)]
struct Found {
    tokenizer: TokenizerFacts,
    train: Vec<CorpusFacts>,
    validation: Vec<CorpusFacts>,
}

impl RunData {
    /// Collective.
    pub fn open(plan: &Plan, world: &World) -> Result<RunData> {
        let (data, began) = (&plan.config.data, Instant::now());
        let mut opened = None;
        let found = Team(Some(world)).by_first(|| {
            let tokenizer = opened.insert(Tokenizer::open(&data.tokenizer)?);
            plan::check_vocabulary(&plan.model, tokenizer.vocab_size(), &data.tokenizer)?;
            if data.chat.is_some() {
                [&data.train, &data.validation]
                    .into_iter()
                    .try_for_each(|list| conversations::check(list, tokenizer))?;
            }
            let tokenizer = tokenizer.facts();
            let look = |corpora: &[Corpus]| match corpora {
                [] => Ok(Vec::new()),
                _ => Mixture::look(corpora, &plan.cutting(), Some(&tokenizer.fingerprint)),
            };
            let (train, validation) = (look(&data.train)?, look(&data.validation)?);
            // A run that goes on was looked at when it began.
            if !RunDir::new(&plan.config.run_dir).checkpoints().exists() {
                let said = plan::check_held_out(&plan.config, plan.model.vocab_size, plan::AT_A_START)?;
                said.iter().for_each(|said| tracing::warn!("{said}"));
            }
            Ok(Found { tokenizer, train, validation })
        })?;
        let corpus = world.agree(Mixture::given(&data.train, &found.train, plan.cutting()))?;
        let held_out = match data.validation.is_empty() {
            true => None,
            false => Some(world.agree(Mixture::given(&data.validation, &found.validation, plan.cutting()))?),
        };
        let here = match world.local_rank() {
            0 => corpus.reach().and_then(|()| held_out.as_ref().map_or(Ok(()), Mixture::reach)),
            _ => Ok(()),
        };
        world.agree(here.and_then(|()| allow_files(data.train.len() + data.validation.len())))?;
        tracing::info!("training on {} (opened in {:.2} s)", corpus.describe(), began.elapsed().as_secs_f64());
        Ok(RunData { tokenizer: found.tokenizer, opened, corpus, held_out })
    }

    /// What a checkpoint remembers of the corpora.
    pub fn note(&self) -> DataNote {
        let validation = self.held_out.as_ref().map(Mixture::notes).unwrap_or_default();
        DataNote { train: self.corpus.notes(), validation }
    }
}

/// Files that a rank has open beside its corpora: libraries' sockets, devices, snapshots.
const OTHERS: u64 = 512;

/// Lets this process have two files of each corpus open, where the limit is lower and may be raised.
fn allow_files(corpora: usize) -> Result<()> {
    let need = 2 * corpora as u64 + OTHERS;
    let mut limit = getrlimit(Resource::Nofile);
    if limit.current.is_none_or(|now| now >= need) {
        return Ok(());
    }
    if limit.maximum.is_some_and(|most| most < need) {
        let most = limit.maximum.unwrap_or_default();
        let fact = format!("{corpora} corpora need up to {need} open files a rank, and {most} are allowed");
        return Err(Error::new(Exit::Data, fact).hint("`herd data merge` makes one of many; or raise ulimit -Hn"));
    }
    limit.current = Some(need);
    setrlimit(Resource::Nofile, limit)
        .map_err(|e| Error::new(Exit::Internal, format!("cannot raise the limit of open files to {need}: {e}")))
}
