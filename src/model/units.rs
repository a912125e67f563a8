//! Where the layers find a unit's parameters and leave its gradients.
//!
//! The passes over the model say when they need a unit and when they are done with it; whether its parameters lie there
//! anyway or are gathered from other ranks for the occasion is somebody else's business ([`Resident`] here, ZeRO in
//! `parallel`).

use super::{Accumulate, Adapter, Flat, Params};
use crate::error::Result;
use crate::layout::{Kind, Unit};
use std::collections::HashMap;

/// What a unit is held for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Use {
    /// Parameters are read.
    Forward,
    /// Parameters are read; the gradients that come with the input gradient (norms) are written.
    BackwardInput,
    /// The matrices' gradients are written; parameters are not read.
    BackwardWeight,
    /// Both of the above in one go.
    Backward,
}

/// A unit while it is held: views of its buffers, and how its gradients are to be written.
pub struct Held {
    /// Parameters and gradients, empty where the use needs none; of a block its adapters too.
    pub flat: Flat,
    /// How gradients are to be written; of a block with adapters, theirs.
    pub grads: Accumulate,
}

/// The units of one rank's stages. A block comes with its adapters, where it has any, in one hold.
///
/// Each [`Units::hold`] is followed by one [`Units::release`] with the same arguments; several holds may be open at once,
/// also of one unit. The first micro-batch of a step to hold a unit for a use is told to replace gradients, later ones to
/// add ([`Held::grads`]); a tied embedding that is held twice in one micro-batch adds the second time. When all
/// gradients of a unit for one micro-batch are written, [`Units::complete`] says so, once per unit and micro-batch.
pub trait Units {
    /// The unit's buffers for `usage`, waited for where they come from other ranks. An error: not on this rank, or a wire failed.
    fn hold(&mut self, unit: Unit, usage: Use) -> Result<Held>;
    /// Ends one hold; the views that it gave must be gone.
    fn release(&mut self, unit: Unit, usage: Use) -> Result<()>;
    /// The gradients of `unit` for one micro-batch are final and may leave for other ranks. An error as for [`Units::hold`].
    fn complete(&mut self, unit: Unit) -> Result<()>;
}

/// Which gradients of a unit's buffer have been written since it was last used for another sum.
#[derive(Clone, Copy, Debug, Default)]
pub struct Written {
    vectors: bool,
    matrices: bool,
}

impl Written {
    /// How gradients are to be written for `usage`, which then counts as done. Where one pass writes everything and an
    /// earlier one wrote a part, the rest is cleared first.
    pub fn accumulate(&mut self, usage: Use, flat: &Flat) -> Accumulate {
        let before = *self;
        self.vectors |= matches!(usage, Use::BackwardInput | Use::Backward);
        self.matrices |= matches!(usage, Use::BackwardWeight | Use::Backward);
        let add = match usage {
            Use::Forward => true,
            Use::BackwardInput => before.vectors,
            Use::BackwardWeight => before.matrices,
            Use::Backward => {
                if before.vectors != before.matrices {
                    before.clear_rest(flat);
                }
                before.vectors || before.matrices
            }
        };
        if add {
            Accumulate::Add
        } else {
            Accumulate::Replace
        }
    }

    /// Clears the gradients that nobody has written.
    pub fn clear_rest(self, flat: &Flat) {
        for p in &flat.layout.params {
            let written = if p.kind == Kind::Vector { self.vectors } else { self.matrices };
            if !written {
                let _ = flat.grad.narrow(0, p.start as i64, p.len() as i64).zero_();
            }
        }
    }
}

/// Units whose buffers are always there, on one rank: tests, inference, and the oracle for everything distributed.
pub struct Resident<'a> {
    params: &'a Params,
    written: HashMap<Unit, Written>,
    first: Accumulate,
    /// Called by [`Units::complete`].
    on_complete: &'a mut dyn FnMut(Unit) -> Result<()>,
}

impl<'a> Resident<'a> {
    /// For one step over `params`, whose first micro-batch does `first` with what the gradient buffers hold.
    pub fn new(
        params: &'a Params, first: Accumulate, on_complete: &'a mut dyn FnMut(Unit) -> Result<()>,
    ) -> Resident<'a> {
        Resident { params, written: HashMap::new(), first, on_complete }
    }
}

impl Resident<'_> {
    fn one(&mut self, unit: Unit, usage: Use) -> Held {
        let flat = self.params.unit(unit).share();
        let grads = match (self.first, usage) {
            (Accumulate::Add, _) | (_, Use::Forward) => Accumulate::Add,
            _ if flat.frozen() => Accumulate::Add,
            _ => self.written.entry(unit).or_default().accumulate(usage, &flat),
        };
        Held { flat, grads }
    }
}

impl Held {
    /// Puts the adapters of a block, held for the same use, beside it; what is written then is their gradients.
    pub fn join(&mut self, adapter: Held) {
        self.grads = adapter.grads;
        self.flat.adapter = Some(Box::new(Adapter { flat: adapter.flat, tokens: None }));
    }
}

/// The unit of the adapters that may lie beside a unit.
pub fn adapter_of(unit: Unit) -> Option<Unit> {
    match unit {
        Unit::Block(i) => Some(Unit::Adapter(i)),
        _ => None,
    }
}

impl Units for Resident<'_> {
    fn hold(&mut self, unit: Unit, usage: Use) -> Result<Held> {
        let mut held = self.one(unit, usage);
        let beside = adapter_of(unit).filter(|a| self.params.units.iter().any(|f| f.layout.unit == *a));
        if let Some(adapter) = beside {
            held.join(self.one(adapter, usage));
        }
        Ok(held)
    }

    fn release(&mut self, _: Unit, _: Use) -> Result<()> {
        Ok(())
    }

    fn complete(&mut self, unit: Unit) -> Result<()> {
        (self.on_complete)(unit)
    }
}
