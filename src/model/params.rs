//! Parameters and gradients as flat buffers, one pair per unit, with named views into them.

use super::Accumulate;
use crate::layout::{Layout, Param, Sharding, Unit, UnitLayout};
use std::ops::Range;
use std::sync::Arc;
use tch::{Device, Kind, Tensor};

/// One unit's buffers. `param` has the compute dtype, `grad` is fp32; both have [`UnitLayout::len`] elements, `grad` none where the
/// unit is frozen.
pub struct Flat {
    /// Which parameter lies where in both buffers.
    pub layout: Arc<UnitLayout>,
    /// Parameters; empty in a hold that does not read them.
    pub param: Tensor,
    /// Gradients, each at the place of its parameter; empty where none are written.
    pub grad: Tensor,
    /// What is added to a block's matrices, while it is held.
    pub adapter: Option<Box<Adapter>>,
}

/// The adapters beside a block's matrices while they are held.
pub struct Adapter {
    /// Parameters and gradients of the factors A and B.
    pub flat: Flat,
    /// [N] i32, what tells this rank's tokens apart in [`super::dropout`]; None: nothing is dropped.
    pub tokens: Option<Tensor>,
}

/// All units of this rank, in forward order.
pub struct Params {
    /// One pair of buffers a unit.
    pub units: Vec<Flat>,
}

impl Params {
    /// Zero-filled buffers for `layout`.
    pub fn zeros(layout: &Layout, dtype: Kind, device: Device) -> Params {
        let flat = |u: &UnitLayout| Flat {
            layout: Arc::new(u.clone()),
            param: Tensor::zeros([u.len as i64], (dtype, device)),
            grad: Tensor::zeros([if u.frozen { 0 } else { u.len as i64 }], (Kind::Float, device)),
            adapter: None,
        };
        Params { units: layout.units.iter().map(flat).collect() }
    }

    /// Zero-filled parameters without gradient buffers, for inference: half to a third of the memory. Asking for a
    /// gradient is a bug.
    pub fn frozen(layout: &Layout, dtype: Kind, device: Device) -> Params {
        let flat = |u: &UnitLayout| Flat {
            layout: Arc::new(u.clone()),
            param: Tensor::zeros([u.len as i64], (dtype, device)),
            grad: Tensor::empty([0], (Kind::Float, device)),
            adapter: None,
        };
        Params { units: layout.units.iter().map(flat).collect() }
    }

    /// The parts that a rank updates of buffers that are whole on it; none of frozen units.
    pub fn owned(&self, sharding: &Sharding) -> Vec<Owned> {
        let owned = |f: &Flat| {
            let range = sharding.range(&f.layout);
            let part = |t: &Tensor| t.narrow(0, range.start as i64, range.len() as i64);
            let (param, grad, counted) = (part(&f.param), part(&f.grad), sharding.counted(&f.layout));
            Owned { layout: f.layout.clone(), param, grad, counted, range }
        };
        self.units.iter().filter(|f| !f.layout.frozen).map(owned).collect()
    }

    /// The buffers of `unit`; panics where this rank has no such unit.
    pub fn unit(&self, unit: Unit) -> &Flat {
        self.units.iter().find(|f| f.layout.unit == unit).expect("every unit of the layout has buffers")
    }
}

/// The part of a unit that one rank updates: where it lies, and the tensors themselves.
pub struct Owned {
    /// Layout of the whole unit.
    pub layout: Arc<UnitLayout>,
    /// Elements of the unit's flat buffer.
    pub range: Range<usize>,
    /// Those of them that this rank counts in norms and writes to checkpoints, as far as it owns the parameter
    /// ([`Param::owner`]).
    pub counted: Range<usize>,
    /// [range.len()] T.
    pub param: Tensor,
    /// [range.len()] f32.
    pub grad: Tensor,
}

impl Owned {
    /// The runs of [`Owned::counted`] whose parameters this rank owns, in elements of the flat buffer; padding, which is
    /// zero, is left in where that makes one run of everything.
    pub fn counted_runs(&self) -> Vec<Range<usize>> {
        if self.layout.params.iter().all(|p| p.owner) {
            return vec![self.counted.clone()];
        }
        let pieces = self.layout.pieces(&self.counted).filter(|(p, _)| p.owner);
        pieces.map(|(p, r)| p.start + r.start..p.start + r.end).collect()
    }

    /// The elements `run` of the flat buffer, which lie in [`Owned::range`], of a tensor that holds that range.
    pub fn part(&self, tensor: &Tensor, run: &Range<usize>) -> Tensor {
        tensor.narrow(0, (run.start - self.range.start) as i64, run.len() as i64)
    }
}

impl Flat {
    /// Another handle of the same buffers; without an adapter.
    pub fn share(&self) -> Flat {
        let (param, grad) = (self.param.shallow_clone(), self.grad.shallow_clone());
        Flat { layout: self.layout.clone(), param, grad, adapter: None }
    }

    /// Whether the unit's parameters are read only.
    pub fn frozen(&self) -> bool {
        self.layout.frozen
    }

    /// The gradient of a norm, about to be added to; of a frozen one a buffer that nobody reads.
    pub fn norm_grad(&self, tail: &str, grads: Accumulate) -> Tensor {
        match self.frozen() {
            false => grads.ready(self.grad(tail)),
            true => Tensor::zeros_like(&self.param(tail)).to_kind(Kind::Float),
        }
    }

    /// View of the parameter whose name ends in `tail`, in its local shape.
    pub fn param(&self, tail: &str) -> Tensor {
        self.view(&self.param, tail, tail)
    }

    /// View of its gradient (fp32), in its local shape.
    pub fn grad(&self, tail: &str) -> Tensor {
        self.view(&self.grad, tail, tail)
    }

    /// One matrix made of the adjacent parameters `first..=last`: `[sum of rows, cols]`, no copy.
    pub fn fused_param(&self, first: &str, last: &str) -> Tensor {
        self.view(&self.param, first, last)
    }

    /// The gradient of [`Flat::fused_param`].
    pub fn fused_grad(&self, first: &str, last: &str) -> Tensor {
        self.view(&self.grad, first, last)
    }

    fn find(&self, tail: &str) -> &Param {
        self.layout.params.iter().find(|p| p.name.ends_with(tail)).expect("the unit holds the parameter")
    }

    fn view(&self, flat: &Tensor, first: &str, last: &str) -> Tensor {
        let (a, b) = (self.find(first), self.find(last));
        let len = b.start + b.len() - a.start;
        let piece = flat.narrow(0, a.start as i64, len as i64);
        match a.extent[..] {
            [_, cols] => piece.view([-1, cols as i64]),
            _ => piece,
        }
    }
}
