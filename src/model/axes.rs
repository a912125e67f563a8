//! The wires that layers use: the two axes that cut a layer itself, and what the layers spend on them.

use crate::error::Result;
use crate::threads::lock;
use crate::wire::{CommTiming, MpiWire, Wire, Work};
use crate::world::Op;
use std::sync::{Arc, Mutex};
use tch::{Device, Tensor};

/// Tensor and context axis of this rank.
#[derive(Clone)]
pub struct Axes {
    /// Heads, feed-forward columns and vocabulary rows are split over it, and between the layers the tokens.
    pub tensor: Arc<dyn Wire>,
    /// Sequences are split over it.
    pub context: Arc<dyn Wire>,
    /// What the layers' collectives cost since they were last asked; of each the bytes of its larger tensor: what is gathered, or
    /// what is reduced.
    spent: Arc<Mutex<CommTiming>>,
}

/// Rows under way. The tensors that they come from must not be written before [`Coming::rows`].
#[must_use = "the rows are not there until they are waited for"]
pub struct Coming {
    rows: Tensor,
    work: Work,
    spent: Arc<Mutex<CommTiming>>,
}

impl Axes {
    /// [`Wire::sound`] of both.
    pub fn sound(&self) -> Result<()> {
        self.tensor.sound().and_then(|()| self.context.sound())
    }

    /// Of this rank's wires over the two axes; nothing is spent yet.
    pub fn new(tensor: Arc<dyn Wire>, context: Arc<dyn Wire>) -> Axes {
        Axes { tensor, context, spent: Arc::default() }
    }

    /// Every layer whole on one rank.
    pub fn solo() -> Axes {
        Axes::new(Arc::new(MpiWire::solo()), Arc::new(MpiWire::solo()))
    }

    /// Ranks of the tensor axis.
    pub fn shards(&self) -> i64 {
        self.tensor.size() as i64
    }

    /// Starts to collect everyone's rows over the tensor axis, in rank order: local [n,..] → [n·t,..]. On one rank these are
    /// the local ones themselves.
    pub fn gather(&self, local: &Tensor) -> Result<Coming> {
        gather(&*self.tensor, local, &self.spent)
    }

    /// Starts to sum over the tensor axis: partial [N,..] of every rank → this rank's rows of the sum, [N/t,..]. On one rank
    /// that is the tensor itself.
    pub fn reduce(&self, partial: Tensor) -> Result<Coming> {
        reduce(&*self.tensor, partial, &self.spent)
    }

    /// [`Axes::gather`] over the context axis.
    pub fn gather_context(&self, local: &Tensor) -> Result<Coming> {
        gather(&*self.context, local, &self.spent)
    }

    /// [`Axes::reduce`] over the context axis.
    pub fn reduce_context(&self, partial: Tensor) -> Result<Coming> {
        reduce(&*self.context, partial, &self.spent)
    }

    /// The sums of a few numbers over the context axis, on each of its ranks; `device` is the wire's.
    pub fn sum_context(&self, mine: Vec<f64>, device: Device) -> Result<Vec<f64>> {
        if self.context.size() == 1 || mine.is_empty() {
            return Ok(mine);
        }
        let sums = Tensor::from_slice(&mine).to_device(device);
        let took = self.context.all_reduce(&sums, Op::Sum)?.wait()?;
        count(&self.spent, &sums);
        lock(&self.spent).took(took);
        let sums = sums.to_device(Device::Cpu);
        Ok((0..mine.len()).map(|i| sums.double_value(&[i as i64])).collect())
    }

    /// Counts from zero again, and says what has been spent until now. Shared by all clones of these axes.
    pub fn take_spent(&self) -> CommTiming {
        std::mem::take(&mut lock(&self.spent))
    }
}

impl Coming {
    /// Waits for the rows.
    pub fn rows(self) -> Result<Tensor> {
        let t = self.work.wait()?;
        lock(&self.spent).took(t);
        Ok(self.rows)
    }
}

fn gather(wire: &dyn Wire, local: &Tensor, spent: &Arc<Mutex<CommTiming>>) -> Result<Coming> {
    if wire.size() == 1 {
        return Ok(Coming { rows: local.shallow_clone(), work: Work::ready(), spent: spent.clone() });
    }
    let mut size = local.size();
    size[0] *= wire.size() as i64;
    let rows = Tensor::empty(&size, (local.kind(), local.device()));
    let work = wire.all_gather(&local.contiguous(), &rows)?;
    count(spent, &rows);
    Ok(Coming { rows, work, spent: spent.clone() })
}

fn reduce(wire: &dyn Wire, partial: Tensor, spent: &Arc<Mutex<CommTiming>>) -> Result<Coming> {
    if wire.size() == 1 {
        return Ok(Coming { rows: partial, work: Work::ready(), spent: spent.clone() });
    }
    let mut size = partial.size();
    size[0] /= wire.size() as i64;
    let rows = Tensor::empty(&size, (partial.kind(), partial.device()));
    count(spent, &partial);
    let work = wire.reduce_scatter(&partial.contiguous(), &rows)?;
    Ok(Coming { rows, work, spent: spent.clone() })
}

fn count(spent: &Mutex<CommTiming>, whole: &Tensor) {
    let mut spent = lock(spent);
    spent.moved(whole);
    spent.buckets += 1;
}

impl std::fmt::Debug for Axes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "tensor {}/{}, context {}/{}",
            self.tensor.rank(),
            self.tensor.size(),
            self.context.rank(),
            self.context.size()
        )
    }
}
