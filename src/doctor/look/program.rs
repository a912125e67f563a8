//! The site's own health check (NHC, `dcgmi diag`, a script), run on each node.

use crate::slurm::process;
use std::time::Duration;

/// Longer than this and it counts as failed.
const LIMIT: Duration = Duration::from_secs(120);

/// Exit code and first line of what it printed; `None` where none is configured. An error: it did not start or did not end.
pub fn run(line: &[String]) -> Option<Result<(i32, String), String>> {
    let (program, arguments) = line.split_first()?;
    let ended = process::run(process::command(program, arguments), LIMIT);
    Some(ended.map_err(|e| e.to_string()).map(|e| {
        let words = [&e.out, &e.err].into_iter().flat_map(|t| t.lines()).map(str::trim).find(|l| !l.is_empty());
        (e.code, words.unwrap_or_default().chars().take(200).collect())
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn code_and_first_line() {
        let sh = |script: &str| run(&["sh".into(), "-c".into(), script.into()]).unwrap();
        assert_eq!(sh("echo; echo disk bad; echo more; exit 3"), Ok((3, "disk bad".into())));
        assert_eq!(sh("echo words >&2"), Ok((0, "words".into())));
        assert!(run(&["herd-has-no-such-program".into()]).unwrap().is_err());
        assert_eq!(run(&[]), None);
    }
}
