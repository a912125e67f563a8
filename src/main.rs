//! The `herd` binary: everything is in [`herd::cli`].

use std::process::ExitCode;

fn main() -> ExitCode {
    herd::cli::run()
}
