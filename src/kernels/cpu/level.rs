//! What this CPU can do, found once.

#[cfg(target_arch = "x86_64")]
use super::x86::avx512::Avx512;
use std::sync::OnceLock;

/// The vector unit that kernels use.
#[derive(Clone, Copy)]
pub enum Level {
    #[cfg(target_arch = "x86_64")]
    Avx512(Avx512),
    Avx2,
    Portable,
}

/// Best level of this CPU, or a lower one if the environment variable `HERD_CPU` is `avx2` or `portable`: to compare results
/// between machines, and to test what other CPUs run.
pub fn get() -> Level {
    static LEVEL: OnceLock<Level> = OnceLock::new();
    *LEVEL.get_or_init(|| {
        let limit = std::env::var("HERD_CPU").unwrap_or_default();
        if limit == "portable" {
            return Level::Portable;
        }
        #[cfg(target_arch = "x86_64")]
        {
            if let Some(unit) = Avx512::detect().filter(|_| limit != "avx2") {
                return Level::Avx512(unit);
            }
            if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
                return Level::Avx2;
            }
        }
        Level::Portable
    })
}

/// AVX-512, if that is the level.
#[cfg(target_arch = "x86_64")]
pub fn avx512() -> Option<Avx512> {
    match get() {
        Level::Avx512(unit) => Some(unit),
        _ => None,
    }
}
