//! Parameters and gradients as flat buffers, one pair per unit, with named views into them.

use crate::layout::{Layout, Param, Unit, UnitLayout};
use std::sync::Arc;
use tch::{Device, Kind, Tensor};

/// One unit's buffers. `param` has the compute dtype, `grad` is fp32; both have [`UnitLayout::len`] elements.
pub struct Flat {
    pub layout: Arc<UnitLayout>,
    pub param: Tensor,
    pub grad: Tensor,
}

/// All units of this rank, in forward order.
pub struct Params {
    pub units: Vec<Flat>,
}

impl Params {
    /// Zero-filled buffers for `layout`.
    pub fn zeros(layout: &Layout, dtype: Kind, device: Device) -> Params {
        let flat = |u: &UnitLayout| Flat {
            layout: Arc::new(u.clone()),
            param: Tensor::zeros([u.len as i64], (dtype, device)),
            grad: Tensor::zeros([u.len as i64], (Kind::Float, device)),
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
        };
        Params { units: layout.units.iter().map(flat).collect() }
    }

    pub fn unit(&self, unit: Unit) -> &Flat {
        self.units.iter().find(|f| f.layout.unit == unit).expect("every unit of the layout has buffers")
    }
}

impl Flat {
    /// Another handle of the same buffers.
    pub fn share(&self) -> Flat {
        Flat { layout: self.layout.clone(), param: self.param.shallow_clone(), grad: self.grad.shallow_clone() }
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
