//! Libraries found while the program runs: the copy that libtorch has loaded first, never a second one beside it.

use std::ffi::{c_void, CStr, CString};

/// A library whose functions are looked up by name; never unloaded.
pub(crate) struct Library(*mut c_void);

// SAFETY: a handle for dlsym(3), which any thread may call.
unsafe impl Send for Library {}
unsafe impl Sync for Library {}

impl Library {
    /// The library that has `symbol`: among what is loaded for all to see, as libtorch_cuda and what it needs are; then
    /// under `names` if loaded; then found by the loader (dlopen(3): LD_LIBRARY_PATH, the cache, /lib, /usr/lib). The
    /// error is the loader's own words.
    pub(crate) fn with(symbol: &CStr, names: &[&CStr]) -> Result<Library, String> {
        // SAFETY: terminated names; running a library's constructors is what loading is.
        unsafe {
            if !libc::dlsym(libc::RTLD_DEFAULT, symbol.as_ptr()).is_null() {
                return Ok(Library(libc::RTLD_DEFAULT));
            }
            let mut why = String::from("no name to look for");
            for how in [libc::RTLD_NOW | libc::RTLD_NOLOAD, libc::RTLD_NOW] {
                for name in names {
                    let handle = libc::dlopen(name.as_ptr(), how);
                    if !handle.is_null() {
                        return Ok(Library(handle));
                    }
                    why = last_error();
                }
            }
            Err(why)
        }
    }

    /// Address of a function.
    pub(crate) fn find(&self, symbol: &str) -> Result<*mut c_void, String> {
        let name = CString::new(symbol).map_err(|e| e.to_string())?;
        // SAFETY: a handle from dlopen, or RTLD_DEFAULT.
        let found = unsafe { libc::dlsym(self.0, name.as_ptr()) };
        match found.is_null() {
            true => Err(format!("{symbol} is missing in it: {}", last_error())),
            false => Ok(found),
        }
    }
}

fn last_error() -> String {
    // SAFETY: dlerror's text is this thread's until the next call of its family.
    unsafe {
        let text = libc::dlerror();
        match text.is_null() {
            true => "unknown loader error".into(),
            false => CStr::from_ptr(text).to_string_lossy().into_owned(),
        }
    }
}

/// A struct of foreign functions, filled by name from a [`Library`].
macro_rules! functions {
    ($(#[$doc:meta])* $table:ident { $($name:ident($($arg:ty),*) -> $out:ty;)* }) => {
        $(#[$doc])*
        #[allow(non_snake_case)]
        struct $table { $($name: unsafe extern "C" fn($($arg),*) -> $out,)* }

        impl $table {
            fn load(library: &$crate::dynamic::Library) -> std::result::Result<$table, String> {
                Ok($table {
                    $($name: {
                        let found = library.find(stringify!($name))?;
                        // SAFETY: the library declares the function with this signature.
                        unsafe {
                            std::mem::transmute::<*mut std::ffi::c_void, unsafe extern "C" fn($($arg),*) -> $out>(found)
                        }
                    },)*
                })
            }
        }
    };
}
pub(crate) use functions;
