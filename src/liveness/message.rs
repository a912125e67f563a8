//! What ranks say to each other, and its bytes.
//!
//! Every message carries the attempt: one of another attempt is not decoded, so nothing answers it. Times are durations by
//! the sender's own clock; no wall clock is in it.

use super::witness::Invitation;
use super::{Phase, Verdict};
use crate::world::WIRES;
use bytemuck::{Pod, Zeroable};

/// A rank's state, by its own threads.
#[derive(Clone, Copy, Debug, Default, PartialEq, Pod, Zeroable)]
#[repr(C)]
pub struct Probe {
    /// Steps finished.
    pub step: u64,
    /// Changes of phase and other signs of progress so far.
    pub progress: u64,
    /// Namespace in which `pid` means something.
    pub pid_space: u64,
    /// Process id, which means something in `pid_space` only.
    pub pid: u32,
    /// World rank that this is about.
    pub rank: u32,
    /// [`Phase`] as a number.
    pub phase: u32,
    /// Since the rank was heard, by the clock of the rank that passes this on; 0 from the rank itself.
    pub age_ms: u32,
    /// Milliseconds since the last progress.
    pub stuck_ms: u32,
    /// How long `stuck_ms` may be now.
    pub limit_ms: u32,
    /// Own work in the last step, waiting left out, in microseconds.
    pub own_us: u32,
    /// The whole last step.
    pub step_us: u32,
    /// Wire that the main thread waits for, from 1; 0 when it does not wait.
    pub blocked_wire: u32,
    /// Coordinate on that wire of the rank whose message it waits for, from 1; 0 for a collective.
    pub blocked_peer: u32,
    /// Collectives entered, per wire.
    pub entered: [u32; WIRES],
    /// Collectives left, per wire: as many as `entered` where none is under way.
    pub left: [u32; WIRES],
}

impl Probe {
    /// Where the rank is; a number that is no phase is [`Phase::Start`].
    pub fn phase(&self) -> Phase {
        Phase::from_u8(self.phase as u8)
    }

    /// Whether it has gone without progress for longer than it may.
    pub fn is_stuck(&self) -> bool {
        self.stuck_ms > self.limit_ms
    }
}

/// A message.
#[derive(Clone, Debug, PartialEq)]
pub enum Message {
    /// A rank about itself.
    Probe(Probe),
    /// A leader about its node, itself included.
    Report(Vec<Probe>),
    /// "I heard you", with the process of the one who says it.
    Pong {
        /// Process id, 0 while not known.
        pid: u32,
        /// Namespace in which it means something, 0 if unknown.
        pid_space: u64,
    },
    /// A rank that the sender watches has been silent for this long.
    Silent {
        /// World rank that is silent.
        rank: usize,
        /// Milliseconds since it was last heard.
        age_ms: u64,
    },
    /// A process on the sender's node ended.
    Died {
        /// World rank whose process ended.
        rank: usize,
    },
    /// To the leader of the next node: a connection by which each sees the other's end.
    Witness(Invitation),
    /// Leave. `written`: the verdict is in the run directory.
    Stop {
        /// Why.
        verdict: Box<Verdict>,
        /// Whether the verdict is in the run directory; if not, the deputy writes it.
        written: bool,
    },
}

impl Message {
    /// Its bytes: attempt and kind as two words of 8 bytes, little-endian, then the body.
    pub fn encode(&self, attempt: u64) -> Vec<u8> {
        let head = |kind: u64| [attempt.to_le_bytes(), kind.to_le_bytes()].concat();
        let words = |kind: u64, words: [u64; 2]| [head(kind), words.map(u64::to_le_bytes).concat()].concat();
        match self {
            Message::Probe(p) => [&head(0), bytemuck::bytes_of(p)].concat(),
            Message::Report(ps) => [&head(1), bytemuck::cast_slice(ps)].concat(),
            Message::Pong { pid, pid_space } => words(2, [*pid as u64, *pid_space]),
            Message::Silent { rank, age_ms } => words(3, [*rank as u64, *age_ms]),
            Message::Died { rank } => [head(4), (*rank as u64).to_le_bytes().to_vec()].concat(),
            Message::Witness(Invitation { port, word }) => words(7, [*port as u64, *word]),
            Message::Stop { verdict, written } => {
                let text = serde_json::to_vec(verdict).unwrap_or_default();
                [head(5 + *written as u64), text].concat()
            }
        }
    }

    /// `None` for a message of another attempt, or one that makes no sense.
    pub fn decode(attempt: u64, bytes: &[u8]) -> Option<Message> {
        let word = |i: usize| Some(u64::from_le_bytes(bytes.get(8 * i..8 * i + 8)?.try_into().ok()?));
        if word(0)? != attempt {
            return None;
        }
        let body = &bytes[16.min(bytes.len())..];
        Some(match word(1)? {
            0 => Message::Probe(bytemuck::try_pod_read_unaligned(body).ok()?),
            1 => {
                let size = std::mem::size_of::<Probe>();
                if !body.len().is_multiple_of(size) {
                    return None;
                }
                Message::Report(body.chunks_exact(size).map(bytemuck::pod_read_unaligned).collect())
            }
            2 => Message::Pong { pid: word(2)? as u32, pid_space: word(3)? },
            3 => Message::Silent { rank: word(2)? as usize, age_ms: word(3)? },
            4 => Message::Died { rank: word(2)? as usize },
            7 => Message::Witness(Invitation { port: word(2)? as u16, word: word(3)? }),
            kind @ (5 | 6) => Message::Stop { verdict: serde_json::from_slice(body).ok()?, written: kind == 6 },
            _ => return None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::verdict::tests::verdict;
    use super::*;
    use crate::liveness::Reason;

    #[test]
    fn messages_come_back_as_they_were() {
        let probe =
            Probe { step: 9, rank: 3, phase: 5, entered: std::array::from_fn(|i| i as u32), ..Default::default() };
        for m in [
            Message::Probe(probe),
            Message::Report(vec![probe, Probe { rank: 4, ..probe }]),
            Message::Pong { pid: 77, pid_space: 4026531836 },
            Message::Silent { rank: 3, age_ms: 15_400 },
            Message::Died { rank: 2 },
            Message::Witness(Invitation { port: 65535, word: u64::MAX }),
            Message::Stop { verdict: Box::new(verdict(0, Reason::MissedProbes, &[1, 2])), written: true },
        ] {
            let bytes = m.encode(7);
            assert_eq!(Message::decode(7, &bytes), Some(m));
            assert_eq!(Message::decode(8, &bytes), None, "another attempt");
            for cut in 0..bytes.len() {
                let part = Message::decode(7, &bytes[..cut]);
                assert!(part.is_none() || matches!(part, Some(Message::Report(_))), "cut at {cut}");
            }
        }
    }
}
