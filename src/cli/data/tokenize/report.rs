//! What `herd data tokenize` says when it is done: what each input was read as, and what came of it.

use super::Args;
use crate::data::indexed::Sidecar;
use crate::data::pipeline::Account;
use std::io::Write;
use std::path::PathBuf;
use std::time::Duration;

/// The report: the inputs by what they were read as, what stands in front of each document (`front`), then the files and the
/// rate.
pub fn text(accounts: &[Account], written: &[(PathBuf, Sidecar)], args: &Args, front: &str, took: Duration) -> String {
    let mut out = inputs(accounts, args) + &format!("each document: {front}\n");
    let mut text_bytes = 0;
    for (prefix, s) in written {
        text_bytes += s.text_bytes;
        out += &format!(
            "{}: {} documents, {} tokens ({}), {:.3} tokens per byte\n",
            prefix.display(),
            crate::text::grouped(s.documents),
            crate::text::grouped(s.tokens),
            s.dtype,
            s.tokens as f64 / s.text_bytes.max(1) as f64
        );
    }
    let seconds = took.as_secs_f64().max(1e-3);
    out += &format!("{:.2} MB of text in {seconds:.1} s: {:.2} MB/s\n", mega(text_bytes), mega(text_bytes) / seconds);
    if args.skip_bad {
        let first = accounts.iter().find_map(|a| a.first_skipped.as_ref());
        let first = first.map(|f| format!("; the first: {f}")).unwrap_or_default();
        out += &format!("{} skipped as bad{first}\n", crate::text::grouped(accounts.iter().map(|a| a.skipped).sum()));
    }
    out
}

/// One line for each format that was met.
fn inputs(accounts: &[Account], args: &Args) -> String {
    let mut groups: Vec<Vec<&Account>> = Vec::new();
    for a in accounts {
        match groups.iter_mut().find(|g| g[0].format == a.format) {
            Some(group) => group.push(a),
            None => groups.push(vec![a]),
        }
    }
    let line = |group: &Vec<&Account>| {
        let (sum, format) = (|of: fn(&Account) -> u64| group.iter().map(|a| of(a)).sum::<u64>(), &group[0].format);
        let more = if group.len() > 1 { format!(" and {} more", group.len() - 1) } else { String::new() };
        let name = if group[0].name == "-" { "standard input" } else { &group[0].name };
        let mut line =
            format!("read {name}{more} as {format}: {} documents", crate::text::grouped(sum(|a| a.documents)));
        let empty = sum(|a| a.empty);
        if empty > 0 {
            line += &format!(", {} without text left out", crate::text::grouped(empty));
        }
        let unused = match format.starts_with("plain text") {
            true => (!args.text_key.is_empty()).then_some("--text-key"),
            false => args.split_documents.map(|_| "--split-documents"),
        };
        line + &unused.map(|o| format!(" ({o} has no meaning here)")).unwrap_or_default() + "\n"
    };
    groups.iter().map(line).collect()
}

/// Inputs that gave nothing, on stderr: among many others that is easily overlooked.
pub fn warn(accounts: &[Account]) {
    for a in accounts.iter().filter(|a| a.documents == 0) {
        let what = match a.skipped {
            0 => "no document in it".into(),
            n => format!("all {} documents skipped as bad", crate::text::grouped(n)),
        };
        let _ = writeln!(std::io::stderr(), "herd: warning: {}: {what}", a.name);
    }
}

pub fn mega(bytes: u64) -> f64 {
    bytes as f64 / 1e6
}
