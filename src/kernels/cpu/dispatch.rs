//! Functions that run with the best vector unit of this CPU.

/// Makes a function that runs its generic body with the best [`super::simd::Simd`] of this CPU.
/// `fn name<E>(arg: Type, …) -> Out |s| { body }`: `s` is the vector unit, `E: Element` may stand in the types.
macro_rules! simd_fn {
    ($(#[$doc:meta])* $vis:vis fn $name:ident $(<$($e:ident),+>)? ($($arg:ident : $ty:ty),* $(,)?) $(-> $out:ty)? |$s:ident| $body:block) => {
        $(#[$doc])*
        #[allow(clippy::too_many_arguments)]
        $vis fn $name $(<$($e: $crate::kernels::cpu::simd::Element),+>)? ($($arg: $ty),*) $(-> $out)? {
            use $crate::kernels::cpu::simd;
            #[inline(always)]
            #[allow(clippy::too_many_arguments)]
            fn generic<Unit: simd::Simd $(, $($e: simd::Element),+)?>($s: Unit, $($arg: $ty),*) $(-> $out)? $body
            #[cfg(target_arch = "x86_64")]
            {
                use $crate::kernels::cpu::level::{self, Level};
                #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
                #[allow(clippy::too_many_arguments)]
                fn avx512 $(<$($e: simd::Element),+>)? (unit: $crate::kernels::cpu::x86::avx512::Avx512, $($arg: $ty),*) $(-> $out)? {
                    generic(unit, $($arg),*)
                }
                #[target_feature(enable = "avx2,fma")]
                #[allow(clippy::too_many_arguments)]
                fn avx2 $(<$($e: simd::Element),+>)? ($($arg: $ty),*) $(-> $out)? {
                    generic(simd::Portable, $($arg),*)
                }
                match level::get() {
                    // SAFETY: the token in Level::Avx512 exists only where these features were found.
                    Level::Avx512(unit) => return unsafe { avx512(unit, $($arg),*) },
                    // SAFETY: Level::Avx2 is given only where avx2 and fma were found.
                    Level::Avx2 => return unsafe { avx2($($arg),*) },
                    Level::Portable => {}
                }
            }
            generic(simd::Portable, $($arg),*)
        }
    };
}
pub(crate) use simd_fn;
