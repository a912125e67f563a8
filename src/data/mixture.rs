//! Several corpora as one stream of samples: which corpus and which of its samples index i reads is a pure function of
//! (weights, seed, i).
//!
//! Weights become whole slots of a period of at most 65,536 indices (exact where a period that short exists), spread over
//! it by Tijdeman's rule for the chairman assignment problem (Discrete Mathematics 32, 1980): after any number of
//! indices, each corpus has had its share to within one sample. The table of one period answers any index in O(1).
//! The k-th draw from a corpus is the k-th of [`samples::shuffled`].

use super::identity::CorpusNote;
use super::indexed::{with_ending, IndexExtent, Indexed, IndexedFacts};
use super::packing::Packs;
use super::sample::{Cutting, Sample};
use super::{conversations, samples};
use crate::config::Corpus;
use crate::error::{Error, Exit, Result};
use serde::{Deserialize, Serialize};
use std::collections::HashSet;

const LONGEST_PERIOD: usize = 1 << 16;
const MOST_CORPORA: usize = 4096;
/// Bytes of all indices together up to which they are checked whole at a start.
const WHOLE: u64 = 64 << 20;
/// Blocks that are looked at in larger ones, over all corpora; and the fewest in one.
const BLOCKS: u64 = 256;
const FEWEST_BLOCKS: u64 = 8;

/// Open corpora with their order.
pub struct Mixture {
    corpora: Vec<Open>,
    turns: Turns,
    how: Cutting,
}

/// What the process that has looked at a corpus tells the others.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CorpusFacts {
    /// What was found out about its token file.
    pub file: IndexedFacts,
    /// Of conversations: which share a sample.
    pub packs: Option<Packs>,
}

struct Open {
    file: Indexed,
    /// [`Indexed::identity`].
    content: String,
    samples: u64,
    packs: Option<Packs>,
    weight: f64,
}

impl Mixture {
    /// Opens `corpora` and checks them: [`Mixture::look`], then [`Mixture::given`].
    pub fn open(corpora: &[Corpus], how: Cutting, tokenizer_fingerprint: Option<&str>) -> Result<Mixture> {
        let facts = Mixture::look(corpora, &how, tokenizer_fingerprint)?;
        Mixture::given(corpora, &facts, how)
    }

    /// Opens and checks every corpus, for all ranks of a run. Where a corpus says with which tokenizer it was made, that must
    /// be `tokenizer_fingerprint` (if given) and fit the vocabulary. Indices are checked whole up to [`WHOLE`] bytes together,
    /// in the order of the list, the others in blocks.
    pub fn look(corpora: &[Corpus], how: &Cutting, tokenizer_fingerprint: Option<&str>) -> Result<Vec<CorpusFacts>> {
        count(corpora)?;
        if how.sequence_length == 0 {
            return Err(Error::new(Exit::Config, "sequence_length is 0"));
        }
        let blocks = (BLOCKS / corpora.len() as u64).max(FEWEST_BLOCKS);
        let mut left = WHOLE;
        let look = |c: &Corpus| {
            let file = Indexed::look(&c.path, |bytes| match left.checked_sub(bytes) {
                Some(rest) => {
                    left = rest;
                    IndexExtent::All
                }
                None => IndexExtent::Blocks(blocks),
            })?;
            check_tokenizer(&file, how.vocab_size, tokenizer_fingerprint)?;
            let packs = match &how.chat {
                Some(rules) => Some(conversations::look(&file, how, rules)?),
                None if file.masked() => return Err(unread_mask(&file)),
                None if samples::sample_count(file.tokens(), how.sequence_length as u64) == 0 => {
                    return Err(too_short(&file, how.sequence_length))
                }
                None => None,
            };
            Ok(CorpusFacts { file: file.facts()?, packs })
        };
        corpora.iter().map(look).collect()
    }

    /// The mixture of corpora of which [`Mixture::look`], here or on another rank, returned `facts`. Opens no file: that is
    /// done when the first sample of it is read.
    pub fn given(corpora: &[Corpus], facts: &[CorpusFacts], how: Cutting) -> Result<Mixture> {
        let open = |(c, CorpusFacts { file, packs }): (&Corpus, &CorpusFacts)| {
            let samples = match packs {
                Some(packs) => packs.len() as u64,
                None => samples::sample_count(file.tokens, how.sequence_length as u64),
            };
            // Which conversations make a sample is part of what it holds.
            let content = match how.chat {
                Some(rules) => format!("{} ({:?}, {:?})", file.content, rules.packing, rules.too_long),
                None => file.content.clone(),
            };
            // Without weights, the share of a corpus is that of its samples.
            let weight = c.weight.unwrap_or(samples as f64);
            Open { file: Indexed::given(file), content, samples, packs: packs.clone(), weight }
        };
        let open: Vec<Open> = corpora.iter().zip(facts).map(open).collect();
        let turns = Turns::new(&open.iter().map(|c| c.weight).collect::<Vec<f64>>())?;
        Ok(Mixture { corpora: open, turns, how })
    }

    /// Whether this node has the corpora, by one file of each directory: a filesystem that is not mounted lacks them all.
    pub fn reach(&self) -> Result<()> {
        let mut seen = HashSet::new();
        self.corpora.iter().filter(|c| seen.insert(c.file.prefix.parent())).try_for_each(|c| c.file.reach())
    }

    /// Training sample `index`. Any index is valid; each corpus starts its next epoch, in another order, when its samples are used up.
    pub fn sample(&self, index: u64) -> Result<Sample> {
        let (c, draw) = self.turns.at(index);
        self.read(c, samples::shuffled(draw, self.corpora[c].samples, self.how.seed, c as u64))
    }

    /// Validation sample `index`: the same share of each corpus, but its samples in file order, again from the first
    /// when they are used up.
    pub fn sequential(&self, index: u64) -> Result<Sample> {
        let (c, draw) = self.turns.at(index);
        self.read(c, draw % self.corpora[c].samples)
    }

    /// Number of the corpus that sample `index` is of, in training and validation alike.
    pub fn corpus_of(&self, index: u64) -> usize {
        self.turns.at(index).0
    }

    /// Path of each corpus without its ending.
    pub fn paths(&self) -> impl ExactSizeIterator<Item = String> + '_ {
        self.corpora.iter().map(|c| c.file.prefix.display().to_string())
    }

    fn read(&self, corpus: usize, sample: u64) -> Result<Sample> {
        let (s, Open { file, packs, .. }) = (self.how.sequence_length, &self.corpora[corpus]);
        if let Some(packs) = packs {
            return conversations::read(file, packs, corpus, sample, &self.how);
        }
        let first = sample * s as u64;
        let mut ids = Vec::with_capacity(s + 1);
        file.read(first, s + 1, self.how.vocab_size, &mut ids)?;
        let starts = match self.how.documents {
            true => file.document_starts(first..first + s as u64)?,
            false => Vec::new(),
        };
        let starts = starts.iter().map(|at| (at - first) as usize).collect();
        Ok(Sample { ids, starts, targets: None, pairs: Vec::new() })
    }

    /// Preference pairs of each corpus, those that are left out counted.
    pub fn pairs(&self) -> Vec<u64> {
        self.corpora.iter().map(|c| c.file.documents() / 2).collect()
    }

    /// Samples of corpus number `corpus`.
    pub fn samples(&self, corpus: usize) -> u64 {
        self.corpora[corpus].samples
    }

    /// Sample `sample` of corpus number `corpus`, in the order of its file.
    pub fn of_corpus(&self, corpus: usize, sample: u64) -> Result<Sample> {
        self.read(corpus, sample)
    }

    /// Samples of all corpora together. With one corpus, indices `0..epoch_len` read each of them once.
    pub fn epoch_len(&self) -> u64 {
        self.corpora.iter().map(|c| c.samples).sum()
    }

    /// Tokens of all corpora together.
    pub fn tokens(&self) -> u64 {
        self.corpora.iter().map(|c| c.file.tokens()).sum()
    }

    /// What a checkpoint remembers of the corpora.
    pub fn notes(&self) -> Vec<CorpusNote> {
        let note = |open: &Open| CorpusNote {
            path: open.file.prefix.display().to_string(),
            weight: open.weight,
            tokens: open.file.tokens(),
            documents: open.file.documents(),
            content: open.content.clone(),
        };
        self.corpora.iter().map(note).collect()
    }

    /// One line a corpus: path, tokens, samples, share of draws.
    pub fn describe(&self) -> String {
        let line = |(c, open): (usize, &Open)| {
            let packed = open.packs.as_ref().map(|p| {
                let filled = 100.0 * p.filled as f64 / (p.len() * self.how.sequence_length) as f64;
                let (what, each) = if self.how.pairs { ("preference pairs", 2) } else { ("conversations", 1) };
                let out = open.file.documents() / each - p.packed() as u64;
                let out = if out > 0 { format!(", {out} left out") } else { String::new() };
                format!(" from {} {what}{out}, {filled:.1}% filled", p.packed())
            });
            format!(
                "{}: {} tokens, {} samples of {}{}, {:.4}% of draws",
                open.file.prefix.display(),
                open.file.tokens(),
                open.samples,
                self.how.sequence_length,
                packed.unwrap_or_default(),
                100.0 * self.turns.slots[c] as f64 / self.turns.period() as f64,
            )
        };
        self.corpora.iter().enumerate().map(line).collect::<Vec<_>>().join("\n")
    }
}

/// Refuses a list that no period holds, or in which only some have a weight.
fn count(corpora: &[Corpus]) -> Result<()> {
    let given = corpora.iter().filter(|c| c.weight.is_some()).count();
    match corpora.len() {
        n if n == 0 || n > MOST_CORPORA => {
            Err(Error::new(Exit::Config, format!("{n} corpora; 1 to {MOST_CORPORA} work"))
                .hint("`herd data merge` makes one of many"))
        }
        n if given > 0 && given < n => Err(Error::new(Exit::Config, format!("{given} of {n} corpora have a weight"))
            .hint("give every corpus a weight, or none")),
        _ => Ok(()),
    }
}

fn unread_mask(file: &Indexed) -> Error {
    let fact = format!("{} has a loss mask, which a run without data.chat does not read", file.prefix.display());
    Error::new(Exit::Data, fact).hint("set data.chat: {} to train on its conversations")
}

fn too_short(file: &Indexed, sequence_length: usize) -> Error {
    let fact = format!(
        "{} has {} tokens; one sample of sequence_length {sequence_length} takes {}",
        file.prefix.display(),
        file.tokens(),
        sequence_length + 1
    );
    Error::new(Exit::Data, fact).hint("use a longer corpus or a shorter sequence_length")
}

fn check_tokenizer(file: &Indexed, vocab_size: usize, fingerprint: Option<&str>) -> Result<()> {
    let Some(note) = &file.sidecar else { return Ok(()) };
    let path = with_ending(&file.prefix, ".json");
    let t = &note.tokenizer;
    if let Some(ours) = fingerprint.filter(|f| *f != t.fingerprint) {
        let fact = format!(
            "{} was made with tokenizer {} (fingerprint {}), the run uses another ({ours})",
            file.prefix.display(),
            t.spec,
            t.fingerprint
        );
        return Err(Error::new(Exit::Data, fact).hint("set data.tokenizer to the corpus's own, or tokenize again"));
    }
    if t.vocab_size > vocab_size {
        let fact = format!(
            "{}: tokenizer {} has a vocabulary of {}, the model of {vocab_size}",
            path.display(),
            t.spec,
            t.vocab_size
        );
        return Err(
            Error::new(Exit::Data, fact).hint(format!("set the model's vocab_size to {} or more", t.vocab_size))
        );
    }
    Ok(())
}

/// One period of turns.
struct Turns {
    /// Corpus of each index of the period, and how many earlier ones of the period are its own.
    table: Vec<(u32, u32)>,
    /// Turns of each corpus in a period.
    slots: Vec<u64>,
}

impl Turns {
    fn new(weights: &[f64]) -> Result<Turns> {
        if let Some((i, w)) = weights.iter().enumerate().find(|(_, w)| !(w.is_finite() && **w > 0.0)) {
            return Err(Error::new(Exit::Config, format!("corpus {i} has weight {w}")).hint("weights are above 0"));
        }
        let slots = slots(weights);
        let table = spread(&slots);
        Ok(Turns { table, slots })
    }

    fn period(&self) -> u64 {
        self.table.len() as u64
    }

    /// The corpus that has turn `index`, and the number of its turns before.
    fn at(&self, index: u64) -> (usize, u64) {
        let (corpus, earlier) = self.table[(index % self.period()) as usize];
        (corpus as usize, index / self.period() * self.slots[corpus as usize] + earlier as u64)
    }
}

/// Whether both lists of weights deal the same turns, as 1, 1 and 0.5, 0.5 do.
pub fn same_turns(a: &[f64], b: &[f64]) -> bool {
    slots(a) == slots(b)
}

/// Whole turns for each weight: those of the shortest period in which all come out even (to 1e-9 of a turn), else the
/// nearest of the longest period by largest remainder, at least one each.
fn slots(weights: &[f64]) -> Vec<u64> {
    let total: f64 = weights.iter().sum();
    let shares: Vec<f64> = weights.iter().map(|w| w / total).collect();
    let even = |p: usize| {
        shares.iter().all(|s| {
            let turns = s * p as f64;
            turns.round() >= 1.0 && (turns - turns.round()).abs() < 1e-9
        })
    };
    if let Some(p) = (weights.len()..=LONGEST_PERIOD).find(|&p| even(p)) {
        let exact: Vec<u64> = shares.iter().map(|s| (s * p as f64).round() as u64).collect();
        if exact.iter().sum::<u64>() == p as u64 {
            return exact;
        }
    }
    let free = (LONGEST_PERIOD - weights.len()) as f64;
    let mut turns: Vec<u64> = shares.iter().map(|s| 1 + (s * free) as u64).collect();
    let mut order: Vec<usize> = (0..shares.len()).collect();
    let rest = |i: &usize| (shares[*i] * free).fract();
    order.sort_by(|a, b| rest(b).total_cmp(&rest(a)).then(a.cmp(b)));
    let left = LONGEST_PERIOD as u64 - turns.iter().sum::<u64>();
    order.iter().cycle().take(left as usize).for_each(|&i| turns[i] += 1);
    turns
}

/// Tijdeman's rule: of the corpora that are owed at least 1/(2m − 2) of a turn, the one whose debt would first pass its
/// bound takes it. All in units of 1/(period · (2m − 2)), so nothing is rounded.
fn spread(slots: &[u64]) -> Vec<(u32, u32)> {
    let period: u64 = slots.iter().sum();
    let m = slots.len() as i128;
    let scale = (2 * m - 2).max(1);
    let mut had = vec![0u64; slots.len()];
    let mut table = Vec::with_capacity(period as usize);
    for n in 1..=period {
        let owed = |i: usize| (n as i128 * slots[i] as i128 - had[i] as i128 * period as i128) * scale;
        let bound = period as i128 * (scale - 1);
        let sooner = |a: usize, b: usize| (bound - owed(a)) * (slots[b] as i128) < (bound - owed(b)) * slots[a] as i128;
        let mut turn = None;
        for i in (0..slots.len()).filter(|&i| m == 1 || owed(i) >= period as i128) {
            if turn.is_none_or(|t| sooner(i, t)) {
                turn = Some(i);
            }
        }
        // The debts sum to one turn, so some corpus is always owed its 1/m ≥ 1/(2m − 2) for m ≥ 2.
        let turn = turn.unwrap_or(0);
        table.push((turn as u32, had[turn] as u32));
        had[turn] += 1;
    }
    table
}

#[cfg(test)]
mod tests;
