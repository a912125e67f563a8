//! Who holds which block of the cache, and which blocks can be read again by whoever has the same tokens before them (prefix
//! caching, as in vLLM: a block is known by the hash of its tokens and of the block before).
//!
//! A full block that was read stays known when its last holder lets go, until its place is needed: those that were let go first
//! go first. Only full blocks are shared, and a sequence writes behind them, so nobody's block changes under him. What is read again
//! has the bits that it would be made with, since they do not depend on company.

use crate::kernels::paged::BLOCK;
use std::collections::{BTreeMap, HashMap};
use xxhash_rust::xxh3::xxh3_128;

/// What stands for a block and all before it.
pub type Chain = u128;

/// Blocks that hold the beginning of a sequence.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Prefix {
    /// Their numbers in the cache, in the sequence's order.
    pub blocks: Vec<u32>,
    /// How many of them somebody holds.
    pub held: usize,
    /// What stands for all of them.
    pub chain: Chain,
}

/// The blocks of a cache; block 0 is nobody's.
pub struct BlockPool {
    /// Blocks that hold nothing of use.
    free: Vec<u32>,
    /// Holders of each block.
    holders: Vec<u32>,
    /// What each block is known by.
    known: Vec<Option<Chain>>,
    by_chain: HashMap<Chain, u32>,
    /// Known blocks without a holder, by when they were let go.
    idle: BTreeMap<u64, u32>,
    let_go: Vec<u64>,
    clock: u64,
    /// Blocks are known at all.
    sharing: bool,
}

impl BlockPool {
    /// `blocks` with block 0 counted.
    pub fn new(blocks: usize, sharing: bool) -> BlockPool {
        BlockPool {
            free: (1..blocks as u32).rev().collect(),
            holders: vec![0; blocks],
            known: vec![None; blocks],
            by_chain: HashMap::new(),
            idle: BTreeMap::new(),
            let_go: vec![0; blocks],
            clock: 0,
            sharing,
        }
    }

    /// Blocks that can be taken.
    pub fn free(&self) -> usize {
        self.free.len() + self.idle.len()
    }

    /// A block with anything in it; there must be one ([`BlockPool::free`]).
    pub fn take(&mut self) -> u32 {
        let block = self.free.pop().or_else(|| {
            let (_, block) = self.idle.pop_first()?;
            if let Some(chain) = self.known[block as usize].take() {
                self.by_chain.remove(&chain);
            }
            Some(block)
        });
        let block = block.expect("the scheduler gives no more blocks than there are");
        self.holders[block as usize] = 1;
        block
    }

    /// One holder less.
    pub fn let_go(&mut self, block: u32) {
        let i = block as usize;
        self.holders[i] -= 1;
        if self.holders[i] > 0 {
            return;
        }
        match self.known[i] {
            Some(_) => {
                self.clock += 1;
                self.let_go[i] = self.clock;
                self.idle.insert(self.clock, block);
            }
            None => self.free.push(block),
        }
    }

    /// Whether nobody else holds the block.
    pub fn is_sole(&self, block: u32) -> bool {
        self.holders[block as usize] == 1
    }

    /// The known blocks that hold the first of `tokens`. At least one token is left to read.
    pub fn find(&self, tokens: &[u32]) -> Prefix {
        let mut found = Prefix::default();
        for part in tokens[..tokens.len().saturating_sub(1)].chunks_exact(BLOCK) {
            let chain = next(found.chain, part);
            let Some(&block) = self.by_chain.get(&chain) else { break };
            found.held += usize::from(self.holders[block as usize] > 0);
            found.blocks.push(block);
            found.chain = chain;
        }
        found
    }

    /// One holder more of each of the blocks that [`BlockPool::find`] found.
    pub fn share(&mut self, blocks: &[u32]) {
        for &block in blocks {
            let i = block as usize;
            if self.holders[i] == 0 {
                self.idle.remove(&self.let_go[i]);
            }
            self.holders[i] += 1;
        }
    }

    /// `block` has been read; it holds `part`, whole, behind what `before` stands for. Returns what stands for both.
    pub fn publish(&mut self, block: u32, before: Chain, part: &[u32]) -> Chain {
        let chain = next(before, part);
        let known = &mut self.known[block as usize];
        // Two that were read side by side hold the same: one of them is known.
        if self.sharing && known.is_none() && !self.by_chain.contains_key(&chain) {
            *known = Some(chain);
            self.by_chain.insert(chain, block);
        }
        chain
    }
}

fn next(before: Chain, part: &[u32]) -> Chain {
    let mut bytes = before.to_le_bytes().to_vec();
    bytes.extend_from_slice(bytemuck::cast_slice(part));
    xxh3_128(&bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tokens(n: u32) -> Vec<u32> {
        (0..n).collect()
    }

    #[test]
    fn known_blocks_are_found_until_their_place_is_needed() {
        let mut pool = BlockPool::new(5, true);
        let (a, b) = (pool.take(), pool.take());
        let chain = pool.publish(a, 0, &tokens(32)[..16]);
        pool.publish(b, chain, &tokens(32)[16..]);
        let found = |pool: &BlockPool, n| {
            let prefix = pool.find(&tokens(n));
            (prefix.blocks, prefix.held)
        };
        assert_eq!(found(&pool, 33), (vec![a, b], 2));
        assert_eq!(found(&pool, 32).0, [a], "one token is left to read");
        assert_eq!(pool.find(&[7; 40]), Prefix::default());
        pool.share(&[a, b]);
        assert!(!pool.is_sole(a));
        [a, b, b].into_iter().for_each(|block| pool.let_go(block));
        assert!(pool.is_sole(a) && found(&pool, 40) == (vec![a, b], 1));
        assert_eq!(pool.free(), 3);
        pool.let_go(a);
        // b was let go before a; without it the chain ends behind a.
        let taken: Vec<u32> = (0..3).map(|_| pool.take()).collect();
        assert!(taken.contains(&b) && !taken.contains(&a));
        assert_eq!((found(&pool, 40), pool.free()), ((vec![a], 0), 1));
        pool.share(&[a]);
        assert_eq!(pool.free(), 0);
    }

    #[test]
    fn without_sharing_nothing_is_known() {
        let mut pool = BlockPool::new(3, false);
        let a = pool.take();
        pool.publish(a, 0, &tokens(16));
        assert_eq!(pool.find(&tokens(20)), Prefix::default());
        pool.let_go(a);
        assert_eq!(pool.free(), 2);
    }
}
