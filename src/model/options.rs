//! What the caller of a step decides.

use super::Accumulate;

/// How one micro-batch is turned into gradients.
#[derive(Clone, Copy, Debug)]
pub struct StepOptions {
    /// Factor on the summed loss before differentiation: 1 / tokens of the global batch for a mean.
    pub grad_scale: f64,
    /// Weight of (log Z)² in the loss; 0 turns it off.
    pub z_loss: f64,
    /// Replace in the first micro-batch of a step, Add in the others.
    pub grads: Accumulate,
}
