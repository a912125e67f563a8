//! Calls into libraries that panic where they should return an error. Over a file of the user's such a panic is the file's
//! error, not herd's: it is caught here, quietly, and handed back as words.

use std::cell::Cell;
use std::panic::{catch_unwind, AssertUnwindSafe};

thread_local! {
    static INSIDE: Cell<bool> = const { Cell::new(false) };
}

/// What `call` returns, or the words of its panic. What `call` was changing must not be used after a panic.
pub fn guarded<T>(call: impl FnOnce() -> T) -> Result<T, String> {
    let before = INSIDE.replace(true);
    let result = catch_unwind(AssertUnwindSafe(call));
    INSIDE.set(before);
    result.map_err(|payload| {
        let text = payload.downcast_ref::<&str>().map(|s| s.to_string());
        text.or_else(|| payload.downcast_ref::<String>().cloned()).unwrap_or_else(|| "panic".into())
    })
}

/// Whether this thread is inside [`guarded`]: a panic there is no bug of herd's, and the panic hook leaves it alone.
pub fn inside() -> bool {
    INSIDE.get()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_becomes_words_and_the_thread_goes_on() {
        assert_eq!(guarded(inside), Ok(true));
        assert_eq!(guarded(|| -> u8 { panic!("no {}", 7) }), Err("no 7".into()));
        assert_eq!(guarded(|| guarded(|| -> u8 { panic!("deep") }).is_err() && inside()), Ok(true));
        assert!(!inside());
    }
}
