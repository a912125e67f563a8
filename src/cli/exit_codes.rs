//! `herd help exit-codes`: the table of [`Exit`].

use crate::error::Exit;

/// One line per code: number, meaning, what a supervisor should do.
pub fn table() -> String {
    let mut out = String::from("Exit codes of herd, and what a script or supervisor should do:\n\n");
    for (exit, meaning, action) in Exit::TABLE {
        out += &format!("  {:>3}  {meaning}\n       {action}\n", exit.code());
    }
    out
}
