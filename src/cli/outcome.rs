//! How the process ends: an error or a panic becomes one message on stderr and an exit code.

use crate::error::libtorch::first_words;
use crate::error::{Error, Exit, Result};
use crate::exit_record;
use crate::foreign;
use crate::liveness::{self, Reason};
use crate::train::device_failure;
use crate::world::{leave, World};
use std::io::Write;
use std::panic::PanicHookInfo;
use std::process::ExitCode;

pub fn exit_code(exit: Exit) -> ExitCode {
    ExitCode::from(exit.code() as u8)
}

/// Prints an error for a person and turns it into its exit code.
pub fn finish(result: Result<()>) -> ExitCode {
    match result {
        Ok(()) => exit_code(Exit::Ok),
        Err(e) => {
            let e = device_failure::explained(e);
            say(&e);
            exit_record::write(&e);
            exit_code(e.exit)
        }
    }
}

/// Prints an error for a person. A closed stderr changes nothing about how the process ends.
pub fn say(e: &Error) {
    let _ = writeln!(std::io::stderr(), "herd: error: {e}");
}

/// Ends a rank of `world` with `e`; never returns, unless MPI cannot be ended in order.
///
/// An error that all ranks share ([`Error::agreed`]): one speaks, and all are here to end MPI in order. An error of this rank
/// alone: the others are taken along, and nobody is waited for.
pub fn end(world: World, e: Error) -> Result<()> {
    if !e.agreed {
        say(&e);
        exit_record::write(&e);
        leave(e.exit.code())
    }
    if world.rank() == 0 {
        say(&e);
        exit_record::write(&e);
    }
    world.finalize()?;
    std::process::exit(e.exit.code())
}

/// A panic in any thread prints one line and ends the process at once, with [`Exit::Internal`] or, where libtorch panicked over
/// a device, as that device's failure: unwinding could wait for MPI, and a process that lost a thread is of no use to its
/// peers. A library's panic over a file ([`foreign::guarded`]) goes back to its caller.
pub fn install_panic_hook() {
    std::panic::set_hook(Box::new(|info| {
        if foreign::inside() {
            return;
        }
        let text = message(info);
        // `println!` panics when a reader closes the pipe (`herd … | head`): not a bug, and nobody reads on.
        if text.starts_with("failed printing to std") {
            hard_exit(Exit::Ok);
        }
        if let Some(e) = device_failure::of_words(&text) {
            say(&e);
            exit_record::write(&e);
            liveness::confess_error(&e);
            hard_exit(e.exit);
        }
        let place = info.location().map(|l| format!(" ({}:{})", l.file(), l.line())).unwrap_or_default();
        let _ = writeln!(
            std::io::stderr(),
            "herd: internal error: {}{place}; this is a bug, please report it",
            first_words(&text)
        );
        let fact = format!("panic: {}{place}", first_words(&text));
        exit_record::write(&Error::new(Exit::Internal, fact.clone()));
        liveness::confess(Reason::Internal, &fact, Exit::Internal);
        hard_exit(Exit::Internal);
    }));
}

fn message(info: &PanicHookInfo) -> String {
    let payload = info.payload();
    let text = payload.downcast_ref::<&str>().map(|s| s.to_string());
    text.or_else(|| payload.downcast_ref::<String>().cloned()).unwrap_or_else(|| "panic".into())
}

/// Ends the process without running exit handlers, which may wait for peers.
fn hard_exit(exit: Exit) -> ! {
    let _ = std::io::stdout().flush();
    // SAFETY: _exit only ends the process.
    unsafe { libc::_exit(exit.code()) }
}
