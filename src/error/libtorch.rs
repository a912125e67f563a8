//! Whose failure an exception of libtorch is: words are all that it gives. Those of CUDA, cuBLAS, cuDNN and NCCL are of 2.11.

/// What failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LibtorchFailure {
    /// Memory of the device is spent.
    OutOfMemory,
    /// The device, its driver, or a library that drives it.
    Device,
    /// Something else: herd gave libtorch what it cannot do.
    Other,
}

const OUT_OF_MEMORY: [&str; 5] = [
    "CUDA out of memory",
    "CUDA error: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
    "CUDA driver error: out of memory",
];
const DEVICE: [&str; 12] = [
    "CUDA error",
    "CUDA driver error",
    "CUDA kernel",
    "CUBLAS_STATUS_",
    "CUSOLVER_STATUS_",
    "cuDNN error",
    "cuDNN Frontend error",
    "CUDNN_STATUS_",
    "NCCL error",
    "NCCL Error",
    "device-side assert",
    "misaligned address",
];

impl LibtorchFailure {
    /// What the words of an exception say; want of memory is looked for first.
    pub fn of(words: &str) -> LibtorchFailure {
        let any = |all: &[&str]| all.iter().any(|w| words.contains(w));
        // of herd's own launches: the driver's number (CUDA_ERROR_OUT_OF_MEMORY), then where
        let spent = words.contains("CUDA driver error 2 at ");
        match () {
            () if spent || any(&OUT_OF_MEMORY) => LibtorchFailure::OutOfMemory,
            () if any(&DEVICE) => LibtorchFailure::Device,
            () => LibtorchFailure::Other,
        }
    }
}

/// The message alone, one line: without what tch puts around it and without the C++ backtrace.
pub fn first_words(text: &str) -> String {
    let text = text.split("\\nException raised from").next().unwrap_or(text);
    let text = text.split("\nException raised from").next().unwrap_or(text).replace("\\n", " ");
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_are_told_by_their_words() {
        use LibtorchFailure::*;
        for (words, whose) in [
            ("CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has a total capacity of 79.19 GiB", OutOfMemory),
            ("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`", OutOfMemory),
            ("CUDA kernel swiglu: CUDA driver error 2 at cuLaunchKernel: out of memory", OutOfMemory),
            ("CUDA kernel swiglu: CUDA driver error 700 at cuLaunchKernel: an illegal memory access", Device),
            ("CUDA error: device-side assert triggered", Device),
            ("CUDA error: uncorrectable ECC error encountered", Device),
            ("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasGemmEx(…)`", Device),
            ("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED", Device),
            ("mat1 and mat2 shapes cannot be multiplied (2x3 and 4x5)", Other),
            ("not enough memory: a tensor of 8 bytes was asked for, 5 bytes are in use", Other),
        ] {
            assert_eq!(LibtorchFailure::of(words), whose, "{words}");
        }
    }

    #[test]
    fn libtorch_messages_lose_their_backtrace() {
        let torch = "called `Result::unwrap()` on an `Err` value: Torch(\"mat1 and mat2\\nException raised from x at y\\nframe\")";
        assert_eq!(first_words(torch), "called `Result::unwrap()` on an `Err` value: Torch(\"mat1 and mat2");
        assert_eq!(first_words("a\n  b"), "a b");
    }
}
