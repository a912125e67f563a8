//! The table for people: worst first, each red and amber row with its cure.

use crate::doctor::{Diagnosis, Light};
use crate::launch::preflight::Recorded;
use std::fmt::Write;
use std::io::IsTerminal;

pub fn human(d: &Diagnosis, told: Option<&Recorded>) -> String {
    let coloured = std::io::stdout().is_terminal();
    let mut out = String::new();
    let n = |light| d.count(light);
    let _ = writeln!(
        out,
        "{} node{}, {} rank{}, {:.1} s: {} red, {} amber, {} green, {} not measured\n",
        d.nodes.len(),
        if d.nodes.len() == 1 { "" } else { "s" },
        d.ranks,
        if d.ranks == 1 { "" } else { "s" },
        d.seconds,
        n(Light::Red),
        n(Light::Amber),
        n(Light::Green),
        n(Light::Skipped)
    );
    let width = d.checks.iter().map(|c| c.who().chars().count()).max().unwrap_or(0).clamp(3, 24);
    for c in &d.checks {
        let (word, code) = match c.light {
            Light::Red => ("RED", "31;1"),
            Light::Amber => ("amber", "33"),
            Light::Green => ("green", "32"),
            Light::Skipped => ("–", "2"),
        };
        let word = format!("{word:<6}");
        let word = if coloured { format!("\x1b[{code}m{word}\x1b[0m") } else { word };
        let _ = writeln!(out, "{word} {:<15} {:<width$}  {}", c.name, c.who(), c.fact);
        if let Some(cure) = &c.cure {
            let _ = writeln!(out, "{:<6} {:<15} {:<width$}  → {cure}", "", "", "");
        }
    }
    if let Some(told) = told {
        for (node, reason) in &told.avoided {
            let _ = writeln!(out, "\nledger: herd launch avoids {node} ({reason})");
        }
        if !told.cleared.is_empty() {
            let _ = writeln!(out, "\nledger: good again: {}", told.cleared.join(", "));
        }
    }
    out
}
