//! Lists of hosts as Slurm writes them: `a[001-003,7],b2` (scontrol(1), `show hostnames` and `show hostlist`).
//!
//! A range is padded with zeros to the width of its first number. Several brackets in one name make every combination,
//! the last one fastest. A text after the last bracket, which Slurm refuses, is taken as it stands.

use crate::error::{Error, Exit, Result};

/// Slurm's own limit on one list.
const MOST_HOSTS: usize = 1 << 16;

/// Every host of a list, in its order; repeated ones stay.
///
/// Errors ([`Exit::World`]): brackets that do not pair, a range that runs backwards or is no number, more than 65,536
/// hosts.
pub fn expand(list: &str) -> Result<Vec<String>> {
    let mut hosts = Vec::new();
    for name in split_outside_brackets(list)? {
        if !name.is_empty() {
            expand_name(name, &mut hosts).map_err(|what| malformed(list, &what))?;
        }
    }
    Ok(hosts)
}

/// The shortest list that expands to exactly these hosts in this order, ranges on the last number only.
pub fn compress<S: AsRef<str>>(hosts: &[S]) -> String {
    let mut list = String::new();
    let mut rest = hosts;
    while let [first, ..] = rest {
        let (prefix, number) = split_number(first.as_ref());
        // Neighbours that differ in the last number only share one bracket.
        let same = |h: &S| !number.is_empty() && split_number(h.as_ref()).0 == prefix && ends_in_number(h.as_ref());
        let count = 1 + rest[1..].iter().take_while(|h| same(h)).count();
        let numbers: Vec<&str> = rest[..count].iter().map(|h| split_number(h.as_ref()).1).collect();
        if !list.is_empty() {
            list.push(',');
        }
        list.push_str(prefix);
        if count == 1 {
            list.push_str(number);
        } else {
            list.push_str(&format!("[{}]", ranges(&numbers).join(",")));
        }
        rest = &rest[count..];
    }
    list
}

fn malformed(list: &str, what: &str) -> Error {
    Error::new(Exit::World, format!("host list '{list}': {what}"))
        .hint("Slurm writes lists as in node[001-003,7],login1; see `scontrol show hostlist`")
}

/// Cuts at the commas between names, leaving those inside brackets.
fn split_outside_brackets(list: &str) -> Result<Vec<&str>> {
    let (mut names, mut start, mut inside) = (Vec::new(), 0, false);
    for (at, c) in list.char_indices() {
        match (c, inside) {
            ('[', false) => inside = true,
            (']', true) => inside = false,
            ('[', true) => return Err(malformed(list, "a bracket inside a bracket")),
            (']', false) => return Err(malformed(list, "a bracket is closed that was never opened")),
            (',', false) => {
                names.push(list[start..at].trim());
                start = at + 1;
            }
            _ => {}
        }
    }
    if inside {
        return Err(malformed(list, "a bracket is not closed"));
    }
    names.push(list[start..].trim());
    Ok(names)
}

/// Appends what one name with brackets stands for. `Err` says what is wrong with it.
fn expand_name(name: &str, hosts: &mut Vec<String>) -> std::result::Result<(), String> {
    let mut heads = vec![String::new()];
    let mut rest = name;
    while let Some((before, after)) = rest.split_once('[') {
        let (inside, tail) = after.split_once(']').ok_or("a bracket is not closed")?;
        let numbers = expand_ranges(inside)?;
        if heads.len().saturating_mul(numbers.len()) + hosts.len() > MOST_HOSTS {
            return Err(format!("more than {MOST_HOSTS} hosts"));
        }
        heads = heads.iter().flat_map(|h| numbers.iter().map(move |n| format!("{h}{before}{n}"))).collect();
        rest = tail;
    }
    hosts.extend(heads.into_iter().map(|h| h + rest));
    Ok(())
}

/// `001-003,7` → 001 002 003 7.
fn expand_ranges(inside: &str) -> std::result::Result<Vec<String>, String> {
    let mut numbers = Vec::new();
    for range in inside.split(',').map(str::trim) {
        let (low, high) = range.split_once('-').unwrap_or((range, range));
        let (first, last) = (number(low, range)?, number(high, range)?);
        if first > last {
            return Err(format!("the range '{range}' runs backwards"));
        }
        if last - first >= MOST_HOSTS as u64 || numbers.len() as u64 + (last - first) >= MOST_HOSTS as u64 {
            return Err(format!("the range '{range}' holds more than {MOST_HOSTS} hosts"));
        }
        numbers.extend((first..=last).map(|n| format!("{n:0width$}", width = low.len())));
    }
    Ok(numbers)
}

fn number(digits: &str, range: &str) -> std::result::Result<u64, String> {
    if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return Err(format!("'{range}' is not a range of numbers"));
    }
    digits.parse().map_err(|_| format!("a number in '{range}' is too large"))
}

/// A host's name and the number that it ends in, of which at most 18 digits count.
fn split_number(host: &str) -> (&str, &str) {
    let digits = host.bytes().rev().take(18).take_while(u8::is_ascii_digit).count();
    host.split_at(host.len() - digits)
}

fn ends_in_number(host: &str) -> bool {
    host.ends_with(|c: char| c.is_ascii_digit())
}

/// 001 002 003 7 → `001-003`, `7`.
fn ranges(numbers: &[&str]) -> Vec<String> {
    let mut out: Vec<String> = Vec::new();
    let mut i = 0;
    while i < numbers.len() {
        let low = numbers[i];
        let first: u64 = low.parse().unwrap_or(0);
        let run = (1..numbers.len() - i)
            .take_while(|&k| format!("{:0width$}", first + k as u64, width = low.len()) == numbers[i + k])
            .count();
        out.push(if run == 0 { low.to_string() } else { format!("{low}-{}", numbers[i + run]) });
        i += run + 1;
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    /// List, then what `scontrol show hostnames` (22.05) prints for it.
    const SAME_AS_SCONTROL: &[(&str, &str)] = &[
        ("a[001-003,7],b2", "a001 a002 a003 a7 b2"),
        ("a[1-2]b[3-4]", "a1b3 a1b4 a2b3 a2b4"),
        ("n[9-11]", "n9 n10 n11"),
        ("n[09-11]", "n09 n10 n11"),
        ("x", "x"),
        ("a,,b", "a b"),
        ("n[99-100]", "n99 n100"),
        ("n[1,1,3]", "n1 n1 n3"),
        ("", ""),
    ];

    #[test]
    fn expands_as_slurm_does() {
        for (list, hosts) in SAME_AS_SCONTROL {
            assert_eq!(expand(list).unwrap().join(" "), *hosts, "{list}");
        }
    }

    #[test]
    fn a_text_after_the_bracket_is_kept() {
        assert_eq!(expand("r[0-1]n[00-02]-ib").unwrap().len(), 6);
        assert_eq!(expand("n[1-2].cluster").unwrap(), ["n1.cluster", "n2.cluster"]);
    }

    #[test]
    fn what_is_malformed_says_why() {
        let cases = [
            ("a[1-2", "not closed"),
            ("a1]", "never opened"),
            ("a[[1]]", "inside a bracket"),
            ("a[2-1]", "runs backwards"),
            ("a[]", "not a range"),
            ("a[x-y]", "not a range"),
            ("a[1-]", "not a range"),
            ("a[1-99999999]", "more than 65536"),
            ("a[0-999]b[0-999]", "more than 65536"),
            ("a[99999999999999999999]", "too large"),
        ];
        for (list, why) in cases {
            let e = expand(list).unwrap_err();
            assert_eq!(e.exit, Exit::World);
            assert!(e.to_string().contains(why) && e.to_string().contains(list), "{list}: {e}");
        }
    }

    #[test]
    fn compresses_as_slurm_does() {
        let cases = [
            ("a001 a002 a003 a7 b2", "a[001-003,7],b2"),
            ("n8 n9 n10 n11", "n[8-11]"),
            ("r0n0 r0n1 r1n0", "r0n[0-1],r1n0"),
            ("n1-ib n2-ib", "n1-ib,n2-ib"),
            ("b a c1", "b,a,c1"),
            ("n01 n2 n02 n03", "n[01,2,02-03]"),
            ("n3 n1 n2 n2", "n[3,1-2,2]"),
            ("n099 n100", "n[099-100]"),
        ];
        for (hosts, list) in cases {
            let hosts: Vec<&str> = hosts.split(' ').collect();
            assert_eq!(compress(&hosts), list);
        }
        assert_eq!(compress::<&str>(&[]), "");
    }

    #[test]
    fn compressing_loses_nothing() {
        // Every ordered choice of three among names that share prefixes, widths and numbers.
        let names = ["n1", "n2", "n01", "n02", "n9", "n10", "m1", "n", "7", "n123456789012345678901"];
        for a in names {
            for b in names {
                for c in names {
                    let hosts = [a, b, c];
                    assert_eq!(expand(&compress(&hosts)).unwrap(), hosts, "{}", compress(&hosts));
                }
            }
        }
    }
}
