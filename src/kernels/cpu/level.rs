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

/// Best level of this CPU.
pub fn get() -> Level {
    static LEVEL: OnceLock<Level> = OnceLock::new();
    *LEVEL.get_or_init(|| {
        #[cfg(target_arch = "x86_64")]
        {
            if let Some(unit) = Avx512::detect() {
                return Level::Avx512(unit);
            }
            if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
                return Level::Avx2;
            }
        }
        Level::Portable
    })
}
