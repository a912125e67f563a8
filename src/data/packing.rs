//! Which conversations share a sample: first-fit over a seeded order, so that samples are full and none holds a cut one.
//!
//! A conversation of L tokens takes L − 1 places of a sample: each token but the last is an input, each but the first a target.
//! First-fit (each conversation goes to the first sample that has room) leaves at most 70% more samples than the best packing, on
//! lengths that are met a few percent; a tree over what is free finds the sample in O(log n).

use super::samples::Permutation;
use crate::error::{Error, Exit, Result};
use serde::{Deserialize, Serialize};

/// Documents of each sample.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Packs {
    /// Where in `documents` each sample begins; one entry more than there are samples.
    begins: Vec<u32>,
    /// Numbers of documents in their corpus.
    documents: Vec<u32>,
    /// Places that are taken, over all samples.
    pub filled: u64,
}

impl Packs {
    /// Puts documents of these lengths into samples of `room` places; one longer than that is taken to fill a sample. `None` is
    /// left out. Without `share`, each has a sample of its own.
    ///
    /// # Errors
    /// [`Exit::Data`] for more documents than 32 bits count.
    pub fn first_fit(lengths: &[Option<u32>], room: u32, seed: u64, share: bool) -> Result<Packs> {
        let n = lengths.len();
        if n > u32::MAX as usize / 2 {
            let fact = format!("{n} conversations in a corpus; {} can be packed", u32::MAX / 2);
            return Err(Error::new(Exit::Data, fact).hint("give them as several corpora"));
        }
        let mut free = Free::new(n, room);
        let mut sample_of = vec![u32::MAX; n];
        let (mut samples, mut filled) = (0u32, 0);
        let order = Permutation::new(n.max(1) as u64, seed, n as u64, u64::MAX);
        for d in (0..n as u64).map(|i| order.at(i) as usize) {
            let Some(length) = lengths[d] else { continue };
            let need = length.min(room);
            let sample = if share { free.first(need) } else { samples };
            free.take(sample, need);
            (sample_of[d], samples, filled) = (sample, samples.max(sample + 1), filled + need as u64);
        }
        Ok(Packs::collect(&sample_of, samples as usize, filled))
    }

    /// By counting: documents of a sample in ascending order.
    fn collect(sample_of: &[u32], samples: usize, filled: u64) -> Packs {
        let mut begins = vec![0u32; samples + 1];
        let packed = || sample_of.iter().enumerate().filter(|(_, &s)| s != u32::MAX);
        packed().for_each(|(_, &s)| begins[s as usize + 1] += 1);
        for s in 0..samples {
            begins[s + 1] += begins[s];
        }
        let mut documents = vec![0; begins[samples] as usize];
        let mut next = begins.clone();
        for (d, &s) in packed() {
            documents[next[s as usize] as usize] = d as u32;
            next[s as usize] += 1;
        }
        Packs { begins, documents, filled }
    }

    /// Samples.
    pub fn len(&self) -> usize {
        self.begins.len().saturating_sub(1)
    }

    /// Whether there is no sample.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Documents that are in a sample.
    pub fn packed(&self) -> usize {
        self.documents.len()
    }

    /// Documents of sample `i`.
    pub fn documents(&self, i: usize) -> &[u32] {
        &self.documents[self.begins[i] as usize..self.begins[i + 1] as usize]
    }
}

/// Places that are free in each sample: a tree of maxima.
struct Free {
    tree: Vec<u32>,
    leaves: usize,
}

impl Free {
    fn new(samples: usize, room: u32) -> Free {
        let leaves = samples.max(1).next_power_of_two();
        Free { tree: vec![room; 2 * leaves], leaves }
    }

    /// The first sample with `need` places; there are as many samples as documents, so there is one.
    fn first(&self, need: u32) -> u32 {
        let mut at = 1;
        while at < self.leaves {
            at = if self.tree[2 * at] >= need { 2 * at } else { 2 * at + 1 };
        }
        (at - self.leaves) as u32
    }

    fn take(&mut self, sample: u32, need: u32) {
        let mut at = self.leaves + sample as usize;
        self.tree[at] -= need;
        while at > 1 {
            at /= 2;
            self.tree[at] = self.tree[2 * at].max(self.tree[2 * at + 1]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::samples::mix;

    #[test]
    fn each_document_is_in_one_sample_and_none_overflows() {
        let lengths: Vec<Option<u32>> = (0..3000u64).map(|i| (i % 7 != 3).then(|| 1 + (mix(i) % 900) as u32)).collect();
        let packs = Packs::first_fit(&lengths, 1024, 5, true).unwrap();
        let mut seen = vec![0; lengths.len()];
        for s in 0..packs.len() {
            let taken: u32 = packs.documents(s).iter().map(|&d| lengths[d as usize].unwrap()).sum();
            assert!((1..=1024).contains(&taken));
            packs.documents(s).iter().for_each(|&d| seen[d as usize] += 1);
        }
        assert!(seen.iter().zip(&lengths).all(|(&n, l)| n == l.is_some() as u32));
        let total: u32 = lengths.iter().flatten().sum();
        assert_eq!(packs.filled, total as u64);
        assert!(packs.len() as f64 <= 1.1 * (total as f64 / 1024.0).ceil(), "{} samples for {total}", packs.len());
        assert_ne!(packs, Packs::first_fit(&lengths, 1024, 6, true).unwrap(), "the seed decides who shares");
        let alone = Packs::first_fit(&lengths, 1024, 5, false).unwrap();
        assert_eq!((alone.len(), alone.packed()), (packs.packed(), packs.packed()));
    }

    /// First-fit by its definition, and a document that is longer than a sample.
    #[test]
    fn the_first_sample_with_room_is_taken() {
        let lengths: Vec<Option<u32>> = [5, 9, 4, 70, 1, 6, 3].map(Some).to_vec();
        let packs = Packs::first_fit(&lengths, 10, 1, true).unwrap();
        let order = Permutation::new(7, 1, 7, u64::MAX);
        let mut free: Vec<u32> = Vec::new();
        let mut samples: Vec<Vec<u32>> = Vec::new();
        for d in (0..7).map(|i| order.at(i) as usize) {
            let need = lengths[d].unwrap().min(10);
            let at = free.iter().position(|&f| f >= need).unwrap_or(free.len());
            if at == free.len() {
                free.push(10);
                samples.push(Vec::new());
            }
            free[at] -= need;
            samples[at].push(d as u32);
        }
        samples.iter_mut().for_each(|s| s.sort());
        assert_eq!((0..packs.len()).map(|s| packs.documents(s).to_vec()).collect::<Vec<_>>(), samples);
        assert!(Packs::first_fit(&[], 10, 1, true).unwrap().is_empty());
    }
}
