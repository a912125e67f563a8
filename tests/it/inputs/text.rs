//! Encodings of text, and what other programs write at the ends of lines, of files and in JSON strings.

use super::table::{case, put, Case};
use std::path::Path;

const TOKENIZE: &str = "data tokenize -t bytes -o out rows";
const LINES: &str = "data tokenize -t bytes -o out rows --split-documents line";

fn rows_of(dir: &Path, content: impl AsRef<[u8]>) {
    put(dir, "rows", content);
}

/// In UTF-16 of one order of bytes, behind a mark or not.
fn utf16(dir: &Path, big: bool, mark: bool) {
    let text = ["\u{feff}owls and elks\n", "owls and elks\n"][usize::from(!mark)];
    let order = if big { u16::to_be_bytes } else { u16::to_le_bytes };
    rows_of(dir, text.encode_utf16().flat_map(order).collect::<Vec<u8>>());
}

fn deep(dir: &Path) {
    let nest = 100_000;
    rows_of(dir, format!("{{\"a\": {}{}, \"text\": \"owl\"}}\n", "[".repeat(nest), "]".repeat(nest)));
}

/// Rows, in text and JSON, that are read.
fn read() -> Vec<Case> {
    vec![
        case("lines as Windows ends them", |d| rows_of(d, "owl\r\nelk\r\n"), LINES).writes("out", &["owl|", "elk|"]),
        case("JSON with such lines", |d| rows_of(d, "{\"text\": \"owl\"}\r\n{\"text\": \"elk\"}\r\n"), TOKENIZE)
            .writes("out", &["owl|", "elk|"]),
        case("a last line without an end", |d| rows_of(d, "owl\nelk"), LINES).writes("out", &["owl|", "elk|"]),
        case("separators of lines that are no ends of lines", |d| rows_of(d, "owl\u{2028}elk\u{85}ewe\n"), LINES)
            .writes("out", &["owl\u{2028}elk\u{85}ewe|"]),
        case("a pair of surrogates", |d| rows_of(d, "{\"text\": \"\\ud83e\\udd89\"}\n"), TOKENIZE)
            .writes("out", &["\u{1f989}|"]),
        case("a key that is there twice", |d| rows_of(d, "{\"text\": \"owl\", \"text\": \"elk\"}\n"), TOKENIZE)
            .writes("out", &["elk|"]),
        case("lists inside lists", deep, TOKENIZE).writes("out", &["owl|"]),
        case("one file twice", |d| rows_of(d, "owl\n"), "data tokenize -t bytes -o out rows rows")
            .says(&["rows and 1 more", "2 documents"]),
    ]
}

/// Rows that are not.
fn refused() -> Vec<Case> {
    let refused = |name, make: fn(&Path), words: &[&'static str]| case(name, make, TOKENIZE).refused(11).says(words);
    vec![
        refused("Latin-1", |d| rows_of(d, b"caf\xe9\n"), &["rows:1: byte 0xe9 at column 4", "iconv -f LATIN1"]),
        refused("UTF-16 behind a mark", |d| utf16(d, false, true), &["UTF-16 text;", "iconv -f UTF-16 "]),
        refused("UTF-16 without one", |d| utf16(d, false, false), &["without a mark", "iconv -f UTF-16LE "]),
        refused("UTF-16 without one, in the other order", |d| utf16(d, true, false), &["iconv -f UTF-16BE "]),
        refused("UTF-32", |d| rows_of(d, b"\xff\xfe\0\0o\0\0\0w\0\0\0l\0\0\0"), &["UTF-32 text", "iconv -f UTF-32 "]),
        refused("zero bytes", |d| rows_of(d, "ow\0l\n"), &["rows holds zero bytes", "--format text"]),
        refused("half of a pair of surrogates", |d| rows_of(d, "{\"text\": \"owl \\ud800\"}\n"), &["rows:1: not JSON"]),
        refused("JSON that is cut off", |d| rows_of(d, "{\"text\": \"owl\"}\n{\"text\": \"el"), &["rows:2:", "EOF"]),
        case("rows that are strings", |d| rows_of(d, "\"owl\"\n"), "data tokenize -t bytes -o out rows --format jsonl")
            .refused(11)
            .says(&["rows:1: a string, not an object"])
            .never(&["--skip-bad"]),
        refused("a text that is a list", |d| rows_of(d, "{\"text\": [\"owl\"]}\n"), &["\"text\" is an array"]),
        refused("an array of nothing", |d| rows_of(d, "[]"), &["no document in rows"]),
        refused("nothing", |d| rows_of(d, ""), &["no document in rows", "the inputs are empty"]),
        refused("a byte order mark and nothing", |d| rows_of(d, "\u{feff}"), &["no document in rows"]),
        refused("empty lines", |d| rows_of(d, "\n\n\n"), &["no document in rows"]),
        refused("no file", |_| {}, &["cannot read rows: no such file"]),
        refused("a directory", |d| std::fs::create_dir(d.join("rows")).unwrap(), &["rows", "is a directory"]),
    ]
}

pub fn rows() -> Vec<Case> {
    read().into_iter().chain(refused()).collect()
}
