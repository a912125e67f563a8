//! Failures of the device under a run: which error, whose fault, and what the plan had said of memory.
//!
//! libtorch's exceptions reach herd as values ([`tch::TchError`]) or, out of the step's arithmetic, as panics; both come here.

use crate::error::libtorch::{first_words, LibtorchFailure};
use crate::error::{Error, Exit};
use crate::kernels::device::DeviceMemory;
use crate::plan::memory::Memory;
use crate::plan::Plan;
use crate::text::binary;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::OnceLock;
use tch::Device;

/// Steps of this process after which memory that was enough is known to be enough.
const PROVEN: u64 = 2;
/// Bytes beyond the formula's own that are somebody else's.
const STRANGE: u64 = 2 << 30;

struct Promised {
    device: Device,
    memory: Memory,
}

static PROMISED: OnceLock<Promised> = OnceLock::new();
static STEPS: AtomicU64 = AtomicU64::new(0);

/// Remembers what the plan says of this process's memory, once.
pub fn promise(plan: &Plan) {
    let _ = PROMISED.set(Promised { device: plan.device, memory: Memory::peak(plan) });
}

/// A step was finished.
pub fn step_done() {
    STEPS.fetch_add(1, Relaxed);
}

/// The error that libtorch's words stand for where the device is to blame; `None` for all others.
pub fn of_words(words: &str) -> Option<Error> {
    let fact = fact(words);
    match LibtorchFailure::of(words) {
        LibtorchFailure::Other => None,
        LibtorchFailure::Device => Some(
            Error::new(Exit::Device, format!("the device failed: {fact}"))
                .hint("see dmesg on that node for NVRM and Xid lines; a card in that state needs a reset"),
        ),
        LibtorchFailure::OutOfMemory => Some(out_of_memory(&fact)),
    }
}

/// An error as it is, but for libtorch's about a device.
pub fn explained(e: Error) -> Error {
    match e.exit {
        Exit::Internal => of_words(&e.fact).map_or(e.clone(), |found| Error { agreed: e.agreed, ..found }),
        _ => e,
    }
}

/// Only what libtorch said.
fn fact(words: &str) -> String {
    let text = first_words(words);
    let text = text.split_once("Torch(\"").map_or(text.as_str(), |(_, inner)| inner);
    let text = text.trim_end_matches("\")").trim_end_matches('"');
    let text = text.split(" Search for `").next().unwrap_or(text);
    text.trim_start_matches("libtorch: ").trim_end_matches('.').to_string()
}

/// The plan's mistake (which starting again does not mend), unless other processes hold the memory or steps have fitted before.
fn out_of_memory(fact: &str) -> Error {
    let steps = STEPS.load(Relaxed);
    let Some(Promised { device, memory }) = PROMISED.get() else {
        return Error::new(Exit::Config, format!("out of device memory: {fact}"))
            .hint("a smaller batch, or more devices");
    };
    let terms: Vec<String> = memory.terms().iter().map(|(name, bytes)| format!("{name} {}", binary(*bytes))).collect();
    let seen = DeviceMemory::of(*device);
    let held = seen.map_or(String::new(), |m| {
        format!("; this process's tensors hold {} of the card's {}", binary(m.tensors.live), binary(m.total))
    });
    let fact = format!(
        "out of device memory after {steps} steps: {fact}{held}; the plan needs {}: {}",
        binary(memory.total()),
        terms.join(", ")
    );
    let strangers = seen.map_or(0, |m| m.others().saturating_sub(memory.beside.total()));
    if strangers > STRANGE {
        let hint =
            format!("{} are held by other processes of that node: end them, or use another node", binary(strangers));
        return Error::new(Exit::Device, fact).hint(hint);
    }
    if steps >= PROVEN {
        return Error::new(Exit::Device, fact)
            .hint("steps have fitted before: the allocator's memory is fragmented; a new start frees it");
    }
    Error::new(Exit::Config, fact).hint(
        "make the largest term smaller: batch.micro, train.recompute, parallel.zero, or tensor and pipeline ranks",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libtorch_s_words_come_out_of_a_panic_s() {
        let panic = "called `Result::unwrap()` on an `Err` value: Torch(\"CUDA error: device-side assert triggered\\nSearch for `cudaErrorAssert' in …\\nException raised from f at g\")";
        let e = of_words(panic).unwrap();
        assert_eq!(e.exit, Exit::Device);
        assert_eq!(e.fact, "the device failed: CUDA error: device-side assert triggered");
        assert!(of_words("index out of bounds: the len is 3 but the index is 5").is_none());
        assert!(of_words("called `Result::unwrap()` on an `Err` value: Torch(\"shape '[3]' is invalid\")").is_none());
    }

    #[test]
    fn an_error_of_another_kind_stays() {
        let e = Error::new(Exit::Storage, "CUDA error in the name of a file");
        assert_eq!(explained(e).exit, Exit::Storage);
        let e = explained(Error::new(Exit::Internal, "libtorch: CUDA out of memory. Tried to allocate 2.00 GiB."));
        assert!(e.exit == Exit::Config && e.fact.contains("Tried to allocate 2.00 GiB"), "{e}");
    }
}
