//! The ranks that hold one copy of the model: the first decides what is read next and tells the others in one message.

use crate::error::{Error, Exit, Result};
use crate::serve::iteration::TokenBatch;
use crate::serve::stage::{LogitsChunk, ModelStage};
use crate::wire::Wire;
use std::sync::Arc;
use tch::{Device, Kind, Tensor};

/// Words of a message's first part; longer ones have a second.
const FIRST: usize = 2048;

/// A rank's place in a replica.
pub struct Replica {
    stage: ModelStage,
    /// All ranks of the replica, on host memory; the first leads.
    control: Arc<dyn Wire>,
}

impl Replica {
    /// `control` joins all ranks of the replica on host memory; its first rank leads.
    pub fn new(stage: ModelStage, control: Arc<dyn Wire>) -> Replica {
        Replica { stage, control }
    }

    /// The leader's part of an iteration: the logits, a chunk at a time, as [`ModelStage::forward`] gives them.
    pub fn run(&self, batch: &TokenBatch, chunk: &mut LogitsChunk) -> Result<()> {
        self.tell(batch)?;
        self.stage.forward(batch, chunk)
    }

    /// The other ranks' part: until the leader ends the work.
    pub fn follow(&self) -> Result<()> {
        loop {
            let batch = self.hear()?;
            if batch.tokens() == 0 {
                return Ok(());
            }
            self.stage.forward(&batch, &mut |_, _| Ok(()))?;
        }
    }

    /// Ends the work of the others.
    pub fn end(&self) -> Result<()> {
        self.tell(&TokenBatch::default())
    }

    fn tell(&self, batch: &TokenBatch) -> Result<()> {
        if self.control.size() == 1 {
            return Ok(());
        }
        let words = batch.pack();
        let mut first = vec![words.len() as i64];
        first.extend(words.iter().take(FIRST).map(|&w| w as i64));
        first.resize(1 + FIRST, 0);
        self.control.broadcast(&Tensor::from_slice(&first), 0)?.wait()?;
        if words.len() > FIRST {
            let rest: Vec<i64> = words[FIRST..].iter().map(|&w| w as i64).collect();
            self.control.broadcast(&Tensor::from_slice(&rest), 0)?.wait()?;
        }
        Ok(())
    }

    fn hear(&self) -> Result<TokenBatch> {
        let mut words = self.words(1 + FIRST)?;
        let len = usize::try_from(words.remove(0)).map_err(|e| Error::new(Exit::Internal, e.to_string()))?;
        if len > FIRST {
            words.extend(self.words(len - FIRST)?);
        }
        TokenBatch::unpack(&words.iter().take(len).map(|&w| w as u32).collect::<Vec<u32>>())
    }

    fn words(&self, n: usize) -> Result<Vec<i64>> {
        let buffer = Tensor::zeros([n as i64], (Kind::Int64, Device::Cpu));
        self.control.broadcast(&buffer, 0)?.wait()?;
        Ok(Vec::try_from(&buffer)?)
    }
}
