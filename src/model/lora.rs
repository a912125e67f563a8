//! Low-rank adapters (LoRA, arXiv:2106.09685 §4.1) beside frozen matrices: `y = W·x + s·B·(A·drop(x))`, forward and backward by
//! hand. Matrices that read one input ([`Branch`]) share its dropped elements and the product with their A's.
//!
//! Over the tensor axis (t ranks) two cases mirror each other; u = A·drop(x), r columns a module, R of all modules of a branch:
//!
//! | base matrix | A | B | forward | backward |
//! | --- | --- | --- | --- | --- |
//! | cut by rows (q, k, v, gate, up) | whole on every rank | rows, as the matrix | u of own N/t tokens, gathered | s·dy·B summed, own tokens kept |
//! | cut by columns (o, down) | columns, as the matrix | whole on every rank | u summed, own tokens kept | s·dy·B of own tokens, gathered |
//!
//! What moves is N·R values, far less than what the base matrices move. The gradient of a whole factor is of a rank's own tokens,
//! as that of a norm, and is summed over the copies once a step ([`crate::layout::Param::copies`]).

use super::dropout;
use crate::error::Result;
use crate::kernels;
use crate::layout::Param;
use crate::model::{Accumulate, Adapter, Axes, Flat};
use tch::Tensor;
use xxhash_rust::xxh3::xxh3_64;

/// The numbers of a run's adapters.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct LoraNumbers {
    /// What B·A is multiplied by.
    pub scale: f64,
    /// Share of the inputs that a training step drops.
    pub dropout: f64,
}

/// Whether the tensor axis cuts the outputs of the base matrices or their inputs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BaseCut {
    /// Their outputs (q, k, v, gate, up).
    Rows,
    /// Their inputs (o, down).
    Columns,
}

/// The adapters of the matrices that read one input x. N tokens; x is [N/t,I] where the base is cut by rows and [N,I/t] where it
/// is cut by columns, y the other way round: [N,O/t] and [N/t,O].
pub struct Branch<'a> {
    adapter: &'a Adapter,
    numbers: LoraNumbers,
    axes: &'a Axes,
    cut: BaseCut,
    modules: Vec<Module>,
}

/// One adapted matrix.
struct Module {
    name: &'static str,
    /// Its columns among y's.
    at: i64,
    width: i64,
    /// Its columns among u's.
    low: i64,
    rank: i64,
}

impl<'a> Branch<'a> {
    /// Of the matrices `names`, whose outputs lie side by side in y; None where no adapter is beside them.
    pub fn new(
        w: &'a Flat, numbers: LoraNumbers, axes: &'a Axes, cut: BaseCut, names: &[&'static str],
    ) -> Option<Branch<'a>> {
        let adapter = w.adapter.as_deref()?;
        let (mut at, mut low, mut modules) = (0, 0, Vec::new());
        for &name in names {
            let width = find(w, &format!("{name}.weight"))?.extent[0] as i64;
            if let Some(b) = find(&adapter.flat, &format!("{name}.lora_B.weight")) {
                let rank = b.extent[1] as i64;
                modules.push(Module { name, at, width, low, rank });
                low += rank;
            }
            at += width;
        }
        (!modules.is_empty()).then_some(Branch { adapter, numbers, axes, cut, modules })
    }

    /// s·A·drop(x) of all tokens where the base is cut by rows, of this rank's where by columns: what [`Branch::add`] and the
    /// backward pass read. T.
    pub fn low(&self, x: &Tensor) -> Result<Tensor> {
        let u = kernels::linear(&self.dropped(x), &self.a(), None);
        let u = match self.cut {
            BaseCut::Rows => self.axes.gather(&u)?.rows()?,
            BaseCut::Columns => self.axes.reduce(u)?.rows()?,
        };
        Ok(u * self.numbers.scale)
    }

    /// y += B·low.
    pub fn add(&self, low: &Tensor, y: &Tensor) {
        for m in &self.modules {
            kernels::add_product_(&m.of(y), &m.low_of(low), &self.b(m).tr());
        }
    }

    /// Both.
    pub fn low_added(&self, x: &Tensor, y: &Tensor) -> Result<Tensor> {
        let low = self.low(x)?;
        self.add(&low, y);
        Ok(low)
    }

    /// Gradient of u from dy (as y): of this rank's tokens where the base is cut by rows, of all where by columns.
    fn low_gradient(&self, dy: &Tensor) -> Result<Tensor> {
        let parts = self.modules.iter().map(|m| kernels::linear_backward_input(&m.of(dy), &self.b(m)));
        let du = Tensor::cat(&parts.collect::<Vec<_>>(), 1) * self.numbers.scale;
        match self.cut {
            BaseCut::Rows => self.axes.reduce(du)?.rows(),
            BaseCut::Columns => self.axes.gather(&du)?.rows(),
        }
    }

    /// dx (as x) += what comes back through A.
    fn add_input_gradient(&self, du: &Tensor, dx: &Tensor) {
        match self.mask(dx) {
            None => kernels::add_product_(dx, du, &self.a()),
            Some(mask) => {
                let mut dx = dx.shallow_clone();
                dx += kernels::linear_backward_input(du, &self.a()) * mask;
            }
        }
    }

    /// The gradient of u from dy, whose part of dx, on this rank already whole, is added.
    pub fn back(&self, dy: &Tensor, dx: &Tensor) -> Result<Tensor> {
        let du = self.low_gradient(dy)?;
        self.add_input_gradient(&du, dx);
        Ok(du)
    }

    /// The same where dx [N,H] has yet to be summed over the ranks: on one rank it is added, else it comes back, [N/t,H].
    pub fn back_to_norm(&self, dy: &Tensor, dx: &Tensor) -> Result<(Tensor, Option<Tensor>)> {
        match self.axes.tensor.size() {
            1 => Ok((self.back(dy, dx)?, None)),
            _ => {
                let du = self.low_gradient(dy)?;
                let more = self.input_gradient(&du);
                Ok((du, Some(more)))
            }
        }
    }

    /// What comes back through A alone.
    fn input_gradient(&self, du: &Tensor) -> Tensor {
        let dx = kernels::linear_backward_input(du, &self.a());
        match self.mask(&dx) {
            None => dx,
            Some(mask) => dx * mask,
        }
    }

    /// Writes the gradients of A and B. Reads no parameters.
    pub fn backward_weight(&self, grads: Accumulate, dy: &Tensor, low: &Tensor, du: &Tensor, x: &Tensor) {
        let w = &self.adapter.flat;
        for m in &self.modules {
            grads.matrix(&m.of(dy), &m.low_of(low), &w.grad(&format!("{}.lora_B.weight", m.name)));
        }
        let (first, last) = self.ends();
        grads.matrix(du, &self.dropped(x), &w.fused_grad(&first, &last));
    }

    fn dropped(&self, x: &Tensor) -> Tensor {
        self.mask(x).map_or_else(|| x.shallow_clone(), |mask| x * mask)
    }

    /// What x is multiplied by.
    fn mask(&self, x: &Tensor) -> Option<Tensor> {
        let tokens = self.adapter.tokens.as_ref().filter(|_| self.numbers.dropout > 0.0)?;
        let a = find(&self.adapter.flat, &self.ends().0)?;
        let n = x.size()[0];
        let tokens = match self.cut {
            BaseCut::Rows => tokens.narrow(0, n * self.axes.tensor.rank() as i64, n),
            BaseCut::Columns => tokens.shallow_clone(),
        };
        let first = a.offset[1] as i64;
        Some(dropout::mask(&tokens, xxh3_64(a.name.as_bytes()), first, x.size()[1], self.numbers.dropout, x.kind()))
    }

    /// [R,I'] T, the A's one below the other.
    fn a(&self) -> Tensor {
        let (first, last) = self.ends();
        self.adapter.flat.fused_param(&first, &last)
    }

    /// [O',r] T.
    fn b(&self, m: &Module) -> Tensor {
        self.adapter.flat.param(&format!("{}.lora_B.weight", m.name))
    }

    fn ends(&self) -> (String, String) {
        let name = |m: Option<&Module>| format!("{}.lora_A.weight", m.map_or("", |m| m.name));
        (name(self.modules.first()), name(self.modules.last()))
    }
}

impl Module {
    fn of(&self, y: &Tensor) -> Tensor {
        y.narrow(1, self.at, self.width)
    }

    fn low_of(&self, u: &Tensor) -> Tensor {
        u.narrow(1, self.low, self.rank)
    }
}

fn find<'a>(flat: &'a Flat, tail: &str) -> Option<&'a Param> {
    flat.layout.params.iter().find(|p| p.name.ends_with(tail))
}
