//! What one iteration reads, as a value, and as the message that tells it to the other ranks of a replica.

use crate::error::{Error, Exit, Result};
use crate::kernels::paged::{QueryRun, BLOCK};

/// Consecutive tokens of one sequence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stretch {
    /// Token ids, one at least.
    pub ids: Vec<u32>,
    /// Place in the sequence of the first.
    pub start: usize,
    /// Blocks of the sequence up to the last of these tokens.
    pub blocks: Vec<u32>,
    /// After how many of the last of these tokens logits are wanted.
    pub wanted: usize,
}

/// The tokens of an iteration. One without tokens ends the work of a replica.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TokenBatch {
    /// In the order of the rows; of each sequence one at most.
    pub stretches: Vec<Stretch>,
}

impl TokenBatch {
    /// N.
    pub fn tokens(&self) -> usize {
        self.stretches.iter().map(|s| s.ids.len()).sum()
    }

    /// Rows of logits.
    pub fn wanted(&self) -> usize {
        self.stretches.iter().map(|s| s.wanted).sum()
    }

    /// The rows of each stretch.
    pub fn runs(&self) -> Vec<QueryRun<'_>> {
        let mut row = 0;
        let run = |s: &'_ Stretch, row: &mut usize| {
            let first = *row;
            *row += s.ids.len();
            (first, s.ids.len(), s.start)
        };
        self.stretches
            .iter()
            .map(|s| {
                let (row, tokens, start) = run(s, &mut row);
                QueryRun { row, tokens, start, blocks: &s.blocks }
            })
            .collect()
    }

    /// Of every token: its id, its place, and its slot of the cache; `rows` of them, the last ones padding, in block 0.
    pub fn rows(&self, rows: usize) -> (Vec<i64>, Vec<i64>, Vec<usize>) {
        let (mut ids, mut places, mut slots) = (Vec::new(), Vec::new(), Vec::new());
        for s in &self.stretches {
            for (i, &id) in s.ids.iter().enumerate() {
                let at = s.start + i;
                ids.push(id as i64);
                places.push(at as i64);
                slots.push(s.blocks[at / BLOCK] as usize * BLOCK + at % BLOCK);
            }
        }
        let padding = rows.saturating_sub(ids.len());
        ids.resize(rows, 0);
        places.resize(rows, 0);
        slots.extend((0..padding).map(|i| i % BLOCK));
        (ids, places, slots)
    }

    /// The rows whose logits are wanted.
    pub fn wanted_rows(&self) -> Vec<i64> {
        let (mut rows, mut end) = (Vec::new(), 0);
        for s in &self.stretches {
            end += s.ids.len();
            rows.extend((end - s.wanted.min(s.ids.len())..end).map(|row| row as i64));
        }
        rows
    }

    /// As words: stretches; of each its tokens, start, rows of logits wanted, blocks; then ids and blocks.
    pub fn pack(&self) -> Vec<u32> {
        let mut out = vec![self.stretches.len() as u32];
        for s in &self.stretches {
            out.extend([s.ids.len() as u32, s.start as u32, s.wanted as u32, s.blocks.len() as u32]);
            out.extend(&s.ids);
            out.extend(&s.blocks);
        }
        out
    }

    /// The inverse of [`TokenBatch::pack`].
    pub fn unpack(words: &[u32]) -> Result<TokenBatch> {
        let mut rest = words.iter().copied();
        let mut next = || rest.next().ok_or_else(|| Error::new(Exit::Internal, "an iteration's message is cut short"));
        let mut stretches = Vec::new();
        for _ in 0..next()? {
            let [n, start, wanted, blocks] = [next()?, next()?, next()?, next()?];
            let ids = (0..n).map(|_| next()).collect::<Result<Vec<u32>>>()?;
            let blocks = (0..blocks).map(|_| next()).collect::<Result<Vec<u32>>>()?;
            stretches.push(Stretch { ids, start: start as usize, blocks, wanted: wanted as usize });
        }
        Ok(TokenBatch { stretches })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_survives_its_message_and_knows_its_rows() {
        let first = Stretch { ids: vec![7, 8, 9], start: 15, blocks: vec![4, 2], wanted: 2 };
        let second = Stretch { ids: vec![1], start: 0, blocks: vec![3], wanted: 1 };
        let batch = TokenBatch { stretches: vec![first, second] };
        assert_eq!(TokenBatch::unpack(&batch.pack()).unwrap(), batch);
        assert_eq!(TokenBatch::unpack(&TokenBatch::default().pack()).unwrap().tokens(), 0);
        assert!(TokenBatch::unpack(&batch.pack()[..5]).is_err() && TokenBatch::unpack(&[]).is_err());
        let (ids, places, slots) = batch.rows(6);
        assert_eq!((ids, places), (vec![7, 8, 9, 1, 0, 0], vec![15, 16, 17, 0, 0, 0]));
        assert_eq!(slots, [4 * 16 + 15, 2 * 16, 2 * 16 + 1, 3 * 16, 0, 1]);
        assert_eq!((batch.wanted_rows(), batch.wanted(), batch.runs()[1].row), (vec![1, 2, 3], 3, 3));
    }
}
