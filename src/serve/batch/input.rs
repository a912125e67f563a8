//! The file of requests: where its lines lie, and that no two have one name.

use crate::error::{Error, Exit, Result};
use crate::serve::batch::request::{custom_id, ABOUT};
use serde_json::Value;
use std::collections::HashMap;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use xxhash_rust::xxh3::{xxh3_128, Xxh3};

/// An open file of requests. In memory is where each line lies.
pub struct Input {
    file: File,
    path: PathBuf,
    /// (number from 1 on, start, length) of every line that is not empty.
    lines: Vec<(u64, u64, usize)>,
    /// xxh3-128 of the file.
    pub fingerprint: String,
    /// Fields of requests that are read past.
    pub unused: Vec<&'static str>,
}

/// A `custom_id` that several lines have is named with so many of them.
const NAMED: usize = 5;

impl Input {
    /// Errors: the file cannot be read; requests share a `custom_id` ([`Exit::Data`], each with its lines).
    pub fn open(path: &Path) -> Result<Input> {
        let failed = |e: std::io::Error| Error::io(path, "read", &e, Exit::Data);
        let file = File::open(path).map_err(failed)?;
        let mut from = BufReader::with_capacity(1 << 20, file.try_clone().map_err(failed)?);
        let (mut sum, mut lines, mut unused) = (Xxh3::new(), Vec::new(), Vec::new());
        // Of each name its hash and the lines that have it.
        let mut names: HashMap<u128, (u64, Vec<u64>)> = HashMap::new();
        let (mut at, mut number, mut line) = (0, 0, Vec::new());
        loop {
            line.clear();
            let n = from.read_until(b'\n', &mut line).map_err(failed)?;
            if n == 0 {
                break;
            }
            sum.update(&line);
            number += 1;
            let mark = if number == 1 { line.len() - crate::text::unmarked(&line).len() } else { 0 };
            let text = line[mark..].trim_ascii_end();
            if !text.trim_ascii().is_empty() {
                lines.push((number, at + mark as u64, text.len()));
                let value: Value = serde_json::from_slice(text).unwrap_or(Value::Null);
                let id = custom_id(&value);
                if !id.is_null() {
                    let (first, more) = names.entry(xxh3_128(id.to_string().as_bytes())).or_insert((number, vec![]));
                    if *first != number {
                        more.push(number);
                    }
                }
                note_unused(&value, &mut unused);
            }
            at += n as u64;
        }
        let fingerprint = format!("{:032x}", sum.digest128());
        let input = Input { file, path: path.into(), lines, fingerprint, unused };
        input.check_names(names.into_values().filter(|(_, more)| !more.is_empty()).collect())?;
        Ok(input)
    }

    /// Requests.
    pub fn len(&self) -> usize {
        self.lines.len()
    }

    /// Whether no line is a request.
    pub fn is_empty(&self) -> bool {
        self.lines.is_empty()
    }

    /// Numbers of the lines that are requests, ascending.
    pub fn numbers(&self) -> impl Iterator<Item = u64> + '_ {
        self.lines.iter().map(|l| l.0)
    }

    /// The text of line `number`. Errors ([`Exit::Data`]): there is none, or the file has become shorter.
    pub fn line(&self, number: u64) -> Result<Vec<u8>> {
        let place = self.lines.binary_search_by_key(&number, |l| l.0);
        let place = place.map_err(|_| Error::new(Exit::Internal, format!("line {number} is no request")))?;
        let (_, start, len) = self.lines[place];
        let mut text = vec![0; len];
        let read = self.file.read_exact_at(&mut text, start);
        read.map_err(|e| {
            Error::io(&self.path, "read", &e, Exit::Data).hint("leave the file alone while it is worked on")
        })?;
        Ok(text)
    }

    /// The `custom_id` of line `number`; null where it has none.
    pub fn name(&self, number: u64) -> Result<Value> {
        Ok(custom_id(&serde_json::from_slice(&self.line(number)?).unwrap_or(Value::Null)))
    }

    fn check_names(&self, mut shared: Vec<(u64, Vec<u64>)>) -> Result<()> {
        shared.sort();
        let say = |(first, more): &(u64, Vec<u64>)| -> Result<String> {
            let all: Vec<String> = [*first].iter().chain(more).take(NAMED).map(u64::to_string).collect();
            let rest =
                if more.len() >= NAMED { format!(" and {} more", more.len() + 1 - NAMED) } else { String::new() };
            Ok(format!("custom_id {} is that of lines {}{rest}", self.name(*first)?, all.join(", ")))
        };
        let mut problems = shared.iter().take(NAMED).map(say).collect::<Result<Vec<String>>>()?;
        match shared.len() {
            0 => return Ok(()),
            n if n > NAMED => problems.push(format!("{} more are shared", n - NAMED)),
            _ => {}
        }
        Err(Error::several(Exit::Data, self.path.display(), problems).hint("give every request a custom_id of its own"))
    }
}

fn note_unused(value: &Value, unused: &mut Vec<&'static str>) {
    for name in ABOUT {
        let there = !value[name].is_null() || !value["body"][name].is_null();
        if there && !unused.contains(&name) {
            unused.push(name);
        }
    }
}
