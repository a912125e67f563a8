//! Where in a step a rank is.

use serde::{Deserialize, Serialize};

/// Parts of a run, in the order in which a step passes them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[repr(u8)]
pub enum Phase {
    /// Before the first step: data, model, communicators.
    #[default]
    Start,
    /// Reading a checkpoint or weights.
    Restore,
    /// Between two steps.
    Boundary,
    /// Reading samples.
    Data,
    /// Own work on a micro-batch: its forward pass in a chunk.
    Forward,
    /// Own work on a micro-batch: its gradients in a chunk.
    Backward,
    /// Waiting for another pipeline stage.
    Pipeline,
    /// Waiting for the gradients' reduction.
    Reduce,
    /// Loss and norm over all ranks.
    Agree,
    /// Updating the parameters that this rank owns.
    Optimizer,
    /// Waiting for the updated parameters.
    Gather,
    /// Loss of held-out samples.
    Validate,
    /// Writing metrics and events.
    Report,
    /// Snapshot or checkpoint, as far as training waits for it.
    Save,
    /// After the last step.
    End,
}

impl Phase {
    /// Every phase, at the place of its number.
    pub const ALL: [Phase; 15] = [
        Phase::Start,
        Phase::Restore,
        Phase::Boundary,
        Phase::Data,
        Phase::Forward,
        Phase::Backward,
        Phase::Pipeline,
        Phase::Reduce,
        Phase::Agree,
        Phase::Optimizer,
        Phase::Gather,
        Phase::Validate,
        Phase::Report,
        Phase::Save,
        Phase::End,
    ];

    /// From its number in a message; a number that is no phase is [`Phase::Start`].
    pub fn from_u8(n: u8) -> Phase {
        Phase::ALL.get(n as usize).copied().unwrap_or_default()
    }

    /// The main thread may be in a read or write of storage that blocks for long and comes back.
    pub fn touches_storage(self) -> bool {
        matches!(self, Phase::Start | Phase::Restore | Phase::Data | Phase::Report | Phase::Save | Phase::End)
    }

    /// The rank's own work, as far as slowness can be compared between ranks.
    pub fn is_own_work(self) -> bool {
        matches!(self, Phase::Data | Phase::Forward | Phase::Backward | Phase::Optimizer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_and_phases_match() {
        for (i, phase) in Phase::ALL.into_iter().enumerate() {
            assert_eq!((phase as usize, Phase::from_u8(i as u8)), (i, phase));
        }
        assert_eq!(Phase::from_u8(99), Phase::Start);
        assert_eq!(serde_json::to_string(&Phase::Backward).unwrap(), "\"backward\"");
    }
}
