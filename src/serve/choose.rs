//! Rows of logits to tokens: scores of a prompt's own tokens, and choices, each with its penalties and filters. Rows behind proposed
//! tokens are choices too, as far as those before them chose what was proposed.

use crate::error::{Error, Exit, Result};
use crate::kernels::{host, parallel};
use crate::serve::asked::{Asked, Chosen};
use crate::serve::guide::Guide;
use crate::serve::logprobs::{self, Scored};
use crate::serve::sample::finite;
use crate::serve::sequence::Sequence;
use crate::threads::lock;
use std::borrow::Cow;
use std::ops::Range;
use std::sync::Mutex;
use tch::Tensor;

/// What a row of logits came to.
pub(super) enum RowOutcome {
    Scored(Scored, Vec<Scored>),
    Chosen(Chosen),
    /// The same, and the text is whole.
    Last(Chosen),
    /// The text's grammar does not say what may come next, and why.
    Failed(String),
}

/// Rows of an iteration, which come a chunk at a time, and what they came to.
pub(super) struct Choices<'a> {
    sequences: &'a [Sequence],
    /// Of each row of logits: whose it is, and after how many of its tokens, those proposed counted.
    rows: &'a [(usize, usize)],
    vocab: usize,
    /// Of each row that counts, in order: whose it is, and the outcome.
    out: Vec<(usize, RowOutcome)>,
}

impl<'a> Choices<'a> {
    pub fn new(sequences: &'a [Sequence], rows: &'a [(usize, usize)], vocab: usize) -> Choices<'a> {
        Choices { sequences, rows, vocab, out: Vec::with_capacity(rows.len()) }
    }

    /// Logits [C,V] f32 of the rows from `first` on. Errors: logits that are not numbers.
    pub fn take(&mut self, first: usize, logits: &Tensor) -> Result<()> {
        let runs = self.runs(first..first + logits.size()[0] as usize);
        let all = host::floats(logits);
        let done: Vec<Mutex<Option<Result<Vec<RowOutcome>>>>> = runs.iter().map(|_| Mutex::new(None)).collect();
        let (sequences, rows, vocab) = (self.sequences, self.rows, self.vocab);
        parallel::tasks(runs.len(), |n| {
            let run = runs[n].clone();
            let logits = &all[(run.start - first) * vocab..(run.end - first) * vocab];
            let sequence = &sequences[rows[run.start].0];
            *lock(&done[n]) = Some(of_run(sequence, rows[run].iter().map(|row| row.1), logits.chunks_exact(vocab)));
        });
        for (run, done) in runs.into_iter().zip(done) {
            let missing = || Err(Error::new(Exit::Internal, "no token was chosen"));
            let outcomes = done.into_inner().unwrap_or_else(|e| e.into_inner()).unwrap_or_else(missing)?;
            let i = rows[run.start].0;
            self.out.extend(outcomes.into_iter().map(|outcome| (i, outcome)));
        }
        Ok(())
    }

    /// Of each row that counts, in order: whose it is, and the outcome.
    pub fn outcomes(self) -> Vec<(usize, RowOutcome)> {
        self.out
    }

    /// The rows in stretches that are worked at apart: choices of one sequence follow from each other. Those behind a proposal that an
    /// earlier chunk refuted are left out.
    fn runs(&self, rows: Range<usize>) -> Vec<Range<usize>> {
        let proposed = |n: usize| self.rows[n].1.saturating_sub(self.sequences[self.rows[n].0].tokens.len());
        let mut runs: Vec<Range<usize>> = Vec::new();
        for n in rows.clone() {
            match (proposed(n), runs.last_mut()) {
                (0, _) => runs.push(n..n + 1),
                (_, Some(run)) if self.rows[run.start].0 == self.rows[n].0 => run.end = n + 1,
                (behind, _) if self.accepted(self.rows[n].0, behind) => runs.push(n..n + 1),
                _ => {}
            }
        }
        runs
    }

    /// Whether the first `n` proposed tokens of a sequence, all in earlier chunks, were chosen.
    fn accepted(&self, i: usize, n: usize) -> bool {
        let own = self.out.iter().rev().take_while(|(j, _)| *j == i).count() == n;
        own && matches!(self.out.last(), Some((_, RowOutcome::Chosen(c))) if self.sequences[i].goes_on(n - 1, c))
    }
}

impl Sequence {
    /// Whether `chosen`, behind `n` proposed tokens that were accepted, is what was proposed there.
    fn goes_on(&self, n: usize, chosen: &Chosen) -> bool {
        self.proposal.get(n) == Some(&chosen.id) && !chosen.ends
    }
}

/// Rows of one sequence: its first `at` tokens, and the logits [V] behind them.
fn of_run<'l>(
    s: &Sequence, ats: impl Iterator<Item = usize>, logits: impl Iterator<Item = &'l [f32]>,
) -> Result<Vec<RowOutcome>> {
    let tokens: Cow<[u32]> = match s.proposal.is_empty() {
        true => Cow::Borrowed(&s.tokens),
        false => Cow::Owned([&s.tokens[..], &s.proposal].concat()),
    };
    let mut out = Vec::new();
    for (at, logits) in ats.zip(logits) {
        if let Some(&next) = s.tokens.get(at) {
            let (own, top) = logprobs::of(logits, next, s.asked.logprobs.unwrap_or(0));
            out.push(RowOutcome::Scored(own, top));
            continue;
        }
        if s.asked.max_tokens == 0 {
            out.push(RowOutcome::Chosen(Chosen { id: 0, ends: false, scored: None }));
            break;
        }
        let outcome = match &s.guide {
            Some(guide) => guided(&s.asked, &tokens[..at], logits, &mut lock(guide))?,
            None => RowOutcome::Chosen(choose(&s.asked, &tokens[..at], logits)?),
        };
        let goes_on = matches!(&outcome, RowOutcome::Chosen(c) if s.goes_on(at - s.tokens.len(), c));
        out.push(outcome);
        if !goes_on {
            break;
        }
    }
    Ok(out)
}

/// The token after `tokens`, prompt and text, from its logits [V].
fn choose(asked: &Asked, tokens: &[u32], logits: &[f32]) -> Result<Chosen> {
    let Asked { sampling, prompt, sample, stop, logprobs, .. } = asked;
    finite(logits, tokens.len() as u64)?;
    let penalised = sampling.penalised(logits, prompt, &tokens[prompt.len()..]);
    let id = sampling.pick(&penalised, *sample, tokens.len() as u64);
    let scored = logprobs.map(|top| logprobs::of(logits, id, top));
    Ok(Chosen { id, ends: stop.contains(&id), scored })
}

/// The same of what the guide admits, behind penalties and before filters; the guide is told.
fn guided(asked: &Asked, tokens: &[u32], logits: &[f32], guide: &mut Guide) -> Result<RowOutcome> {
    let Asked { sampling, prompt, sample, stop, logprobs, .. } = asked;
    finite(logits, tokens.len() as u64)?;
    let mut admitted = sampling.penalised(logits, prompt, &tokens[prompt.len()..]).into_owned();
    if let Err(why) = guide.restrict(stop, &mut admitted) {
        return Ok(RowOutcome::Failed(why));
    }
    let id = sampling.pick(&admitted, *sample, tokens.len() as u64);
    let scored = logprobs.map(|top| logprobs::of(logits, id, top));
    let chosen = Chosen { id, ends: stop.contains(&id), scored };
    if chosen.ends {
        return Ok(RowOutcome::Chosen(chosen));
    }
    Ok(match guide.accept(id) {
        Ok(false) => RowOutcome::Chosen(chosen),
        Ok(true) => RowOutcome::Last(chosen),
        Err(why) => RowOutcome::Failed(why),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::serve::Sampling;

    fn sequence(tokens: &[u32], proposal: &[u32], stop: &[u32], score_from: Option<usize>) -> Sequence {
        let (prompt, sampling) = (tokens.to_vec(), Sampling::greedy());
        let (max_tokens, sample, stop, logprobs) = (9, 0, stop.to_vec(), Some(0));
        let asked = Asked { prompt, max_tokens, sampling, sample, stop, logprobs, score_from, grammar: None };
        Sequence { proposal: proposal.to_vec(), ..Sequence::new(0, asked, &[], 9) }
    }

    /// However the rows are cut into chunks: what was proposed is accepted up to the first other choice, or the end.
    #[test]
    fn proposals_are_accepted_up_to_the_first_other_choice() {
        let all = [
            sequence(&[1, 2], &[3, 4, 5], &[], None),
            sequence(&[1, 2], &[3, 7, 5], &[], None),
            sequence(&[1, 2, 3], &[], &[], Some(1)),
            sequence(&[1, 2], &[3, 4, 5], &[4], None),
            sequence(&[1, 2], &[9], &[], None),
        ];
        // Behind n tokens the likeliest is n + 1.
        let ats: [&[usize]; 5] = [&[2, 3, 4, 5], &[2, 3, 4, 5], &[1, 2, 3], &[2, 3, 4, 5], &[2, 3]];
        let rows: Vec<(usize, usize)> =
            ats.iter().enumerate().flat_map(|(i, ats)| ats.iter().map(move |&at| (i, at))).collect();
        let row = |&(_, at): &(usize, usize)| (0..12).map(move |id| f32::from(u8::from(id == at + 1)));
        let logits = Tensor::from_slice(&rows.iter().flat_map(row).collect::<Vec<f32>>()).view([-1, 12]);
        for size in 1..=rows.len() {
            let mut choices = Choices::new(&all, &rows, 12);
            for first in (0..rows.len()).step_by(size) {
                let n = size.min(rows.len() - first);
                choices.take(first, &logits.narrow(0, first as i64, n as i64)).unwrap();
            }
            let told: Vec<(usize, char, u32)> = (choices.outcomes().into_iter())
                .map(|(i, outcome)| match outcome {
                    RowOutcome::Scored(own, _) => (i, 's', own.id),
                    RowOutcome::Chosen(c) => (i, if c.ends { 'e' } else { 'c' }, c.id),
                    RowOutcome::Last(_) | RowOutcome::Failed(_) => panic!("there is no grammar"),
                })
                .collect();
            let want = [
                &[(0, 'c', 3), (0, 'c', 4), (0, 'c', 5), (0, 'c', 6), (1, 'c', 3), (1, 'c', 4)][..],
                &[(2, 's', 2), (2, 's', 3), (2, 'c', 4), (3, 'c', 3), (3, 'e', 4), (4, 'c', 3)],
            ];
            assert_eq!(told, want.concat(), "{size} rows at a time");
        }
    }
}
