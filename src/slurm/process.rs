//! Slurm's own commands, run with a time limit: a controller that does not answer must not hold up a recovery.

use crate::error::{Error, Exit, Result};
use crate::host::{self, HostProcess, Pipe, Spawned};
use std::ffi::OsStr;
use std::process::{Command, Stdio};
use std::time::Duration;

/// How a command has ended, and what it said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CommandEnd {
    /// The program as it was called: a name or a path.
    pub program: String,
    /// Exit code, 128 + signal where one ended it.
    pub code: i32,
    /// All of its standard output; empty where that is not UTF-8.
    pub out: String,
    /// All of its standard error; empty where that is not UTF-8.
    pub err: String,
}

impl CommandEnd {
    /// Errors ([`Exit::World`]): another code than 0, with what it said on standard error.
    pub fn well(self) -> Result<CommandEnd> {
        match self.code {
            0 => Ok(self),
            code => {
                Err(Error::new(Exit::World, format!("{}: ended with code {code}: {}", self.program, self.err.trim())))
            }
        }
    }
}

/// Runs `command` for at most `limit` and returns its standard output.
///
/// Errors ([`Exit::World`]): it cannot be started, ends with another code than 0 (with what it said), or takes longer.
pub fn output(command: Command, limit: Duration) -> Result<String> {
    run(command, limit)?.well().map(|ended| ended.out)
}

/// [`output`], and what it said on standard error behind it.
pub fn said(command: Command, limit: Duration) -> Result<String> {
    run(command, limit)?.well().map(|ended| ended.out + &ended.err)
}

/// [`output`], whatever the exit code. Errors ([`Exit::World`]): it cannot be started, or takes longer.
pub fn run(mut command: Command, limit: Duration) -> Result<CommandEnd> {
    let name = command.get_program().to_string_lossy().into_owned();
    let failed = |what: String| Error::new(Exit::World, format!("{name}: {what}"));
    let piped = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let Spawned { mut process, mut out, mut err, .. } =
        host::spawn(piped).map_err(|e| failed(format!("cannot be started: {e}")).hint("is Slurm's client in PATH?"))?;
    // read as it comes: a pipe holds 64 KiB (pipe(7)), and who has filled it waits for a reader
    [&out, &err].into_iter().flatten().for_each(Pipe::do_not_block);
    let (mut said, mut complained) = (Vec::new(), Vec::new());
    let gather = || {
        out.iter_mut().for_each(|pipe| _ = host::drain(pipe, &mut said));
        err.iter_mut().for_each(|pipe| _ = host::drain(pipe, &mut complained));
    };
    let Some(code) = within_while(&mut process, limit, gather) else {
        process.end();
        return Err(failed(format!("no answer within {} s", limit.as_secs_f64())));
    };
    let text = |bytes| String::from_utf8(bytes).unwrap_or_default();
    Ok(CommandEnd { program: name, code, out: text(said), err: text(complained) })
}

/// The exit code of a child that ends within `limit`; 128 + signal where a signal ended it.
pub fn within(child: &mut HostProcess, limit: Duration) -> Option<i32> {
    within_while(child, limit, || {})
}

/// The same; `meanwhile` is called again and again, and once more after the end.
fn within_while(child: &mut HostProcess, limit: Duration, mut meanwhile: impl FnMut()) -> Option<i32> {
    let end = host::now() + limit;
    loop {
        let ended = child.ended();
        meanwhile();
        if ended.is_some() || host::now() >= end {
            return ended;
        }
        host::sleep(Duration::from_millis(5));
    }
}

/// `program` with `args`.
pub fn command<S: AsRef<OsStr>>(program: &str, args: &[S]) -> Command {
    let mut c = Command::new(program);
    c.args(args);
    c
}

/// `command`, which goes on through the SIGTERM that Slurm sends to everything in a job that it ends.
pub fn unhurt(mut command: Command) -> Command {
    use std::os::unix::process::CommandExt;
    // SAFETY: a system call without memory of its own; what is ignored stays so in the new program (signal(7)).
    unsafe {
        command.pre_exec(|| {
            libc::signal(libc::SIGTERM, libc::SIG_IGN);
            Ok(())
        })
    };
    command
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn output_code_and_limit() {
        let run = |script: &str| output(command("sh", &["-c", script]), Duration::from_millis(300));
        assert_eq!(run("echo hello").unwrap(), "hello\n");
        let e = run("echo no such job >&2; exit 3").unwrap_err().to_string();
        assert!(e.contains("code 3: no such job"), "{e}");
        let began = host::now();
        let e = run("exec sleep 20").unwrap_err().to_string();
        assert!(e.contains("no answer within 0.3 s") && began.elapsed() < Duration::from_secs(5), "{e}");
        let e = output(command("herd-has-no-such-program", &[""]), Duration::from_secs(1)).unwrap_err();
        assert!(e.to_string().contains("cannot be started"), "{e}");
    }

    /// More than a pipe holds: srun of a step whose ranks' libraries all print a line, sinfo of a large cluster.
    #[test]
    fn much_is_read_too() {
        let script = "head -c 200000 /dev/zero | tr '\\0' x; head -c 100000 /dev/zero | tr '\\0' y >&2";
        let end = run(command("sh", &["-c", script]), Duration::from_secs(20)).unwrap();
        assert_eq!((end.code, end.out, end.err), (0, "x".repeat(200_000), "y".repeat(100_000)));
    }

    #[test]
    fn a_signal_counts_from_128() {
        let mut child = host::spawn(&mut command("sh", &["-c", "kill -9 $$"])).unwrap();
        assert_eq!(within(&mut child.process, Duration::from_secs(5)), Some(137));
    }
}
