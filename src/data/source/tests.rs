use super::*;
use std::io::{Cursor, Write};

fn rules(format: Format, split: Split) -> SourceRules {
    SourceRules { format, split, text_keys: vec!["text".into()], skip_bad: false }
}

/// Gives one byte at a time, as the slowest pipe.
struct Drops(Cursor<Vec<u8>>);

impl Read for Drops {
    fn read(&mut self, buf: &mut [u8]) -> std::io::Result<usize> {
        let n = buf.len().min(1);
        self.0.read(&mut buf[..n])
    }
}

fn open(name: &str, content: &[u8], rules: &SourceRules) -> Result<SourceDocuments> {
    let whole = SourceDocuments::of(name, Cursor::new(content.to_vec()), None, rules, Arc::default());
    if content.len() < 1 << 12 {
        let dripped = SourceDocuments::of(name, Drops(Cursor::new(content.to_vec())), None, rules, Arc::default());
        match (&whole, &dripped) {
            (Ok(a), Ok(b)) => assert_eq!(a.format, b.format),
            (a, b) => assert!(a.is_err() && b.is_err(), "{name}: how the bytes arrive decides"),
        }
    }
    whole
}

fn read(name: &str, content: &[u8], rules: &SourceRules) -> (Vec<Result<String>>, u64) {
    match open(name, content, rules) {
        Ok(mut d) => ((&mut d).collect(), d.skipped),
        Err(e) => (vec![Err(e)], 0),
    }
}

fn texts(name: &str, content: &[u8], rules: &SourceRules) -> Vec<String> {
    read(name, content, rules).0.into_iter().map(|d| d.unwrap()).collect()
}

fn error(name: &str, content: &[u8], rules: &SourceRules) -> Error {
    read(name, content, rules).0.pop().expect("an error").expect_err("an error")
}

fn auto() -> SourceRules {
    rules(Format::Auto, Split::File)
}

fn gzip(part: &[u8]) -> Vec<u8> {
    let mut w = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    w.write_all(part).unwrap();
    w.finish().unwrap()
}

fn zstd(part: &[u8]) -> Vec<u8> {
    zstd::encode_all(part, 1).unwrap()
}

#[test]
fn plain_text_splits() {
    let text = b"one\ntwo\r\n\n \n\nthree\n\n";
    let by = |split| texts("a.txt", text, &rules(Format::Text, split));
    assert_eq!(by(Split::File), ["one\ntwo\r\n\n \n\nthree\n\n"]);
    assert_eq!(by(Split::BlankLines), ["one\ntwo\r\n", "three\n"]);
    assert_eq!(by(Split::Line), ["one", "two", "three"]);
    for split in [Split::File, Split::BlankLines, Split::Line] {
        assert!(texts("a", b"", &rules(Format::Text, split)).is_empty());
        assert!(texts("a", b"\n\n", &rules(Format::Text, split)).is_empty());
        assert_eq!(texts("a", b"end", &rules(Format::Text, split)), ["end"]);
        assert_eq!(texts("a", b"\xef\xbb\xbfend", &rules(Format::Text, split)), ["end"]);
    }
}

#[test]
fn compression_is_told_by_content() {
    let text = "{\"text\": \"a\"}\n{\"text\": \"b\"}\n".repeat(1000).into_bytes();
    let (a, b) = text.split_at(text.len() / 2);
    let skippable = [&[0x53, 0x2a, 0x4d, 0x18, 3, 0, 0, 0][..], b"abc"].concat();
    // Several members or frames in a row are one file; so is what tools put before, between and behind them.
    let packings = [
        (text.clone(), "JSON lines"),
        ([gzip(a), gzip(b)].concat(), "JSON lines in gzip"),
        ([gzip(a), gzip(b""), gzip(b), vec![0; 700_000]].concat(), "JSON lines in gzip"),
        ([zstd(a), zstd(b)].concat(), "JSON lines in zstd"),
        ([skippable.clone(), zstd(a), skippable.clone(), zstd(b), skippable].concat(), "JSON lines in zstd"),
    ];
    for (packed, words) in packings {
        assert_eq!(open("noname", &packed, &auto()).unwrap().format, words);
        assert_eq!(texts("noname", &packed, &auto()).len(), 2000, "{words}");
    }
    for packed in [[gzip(a), gzip(b)].concat(), [zstd(a), zstd(b)].concat()] {
        let e = error("cut.jsonl", &packed[..packed.len() - 6], &auto());
        assert!(e.exit == Exit::Data && e.fact.contains("cannot decompress cut.jsonl"), "{e}");
    }
    let e = error("x", &[gzip(a), vec![0; 9], b"junk".to_vec()].concat(), &auto());
    assert!(e.fact.contains("no gzip follows"), "{e}");
    let e = error("x", &gzip(&zstd(a)), &auto());
    assert!(e.fact.contains("x holds another compressed file in gzip"), "{e}");
}

/// A window of 2 GiB, as `zstd --long=31` writes, of which little is filled.
#[test]
fn zstd_windows_of_any_size_are_read() {
    let mut encoder = zstd::stream::Encoder::new(Vec::new(), 1).unwrap();
    encoder.window_log(31).unwrap();
    encoder.write_all(b"{\"text\": \"far\"}\n").unwrap();
    // A flush writes the frame's head before its size is known, so that the window is not cut down to it.
    encoder.flush().unwrap();
    encoder.write_all(b"{\"text\": \"away\"}\n").unwrap();
    let packed = encoder.finish().unwrap();
    assert!(zstd::decode_all(&packed[..]).is_err(), "the default refuses it");
    assert_eq!(texts("x", &packed, &auto()), ["far", "away"]);
}

/// Whatever stands before the first row, and however long it is.
#[test]
fn json_is_told_behind_marks_and_blank_lines() {
    let long = format!("{{\"pad\": \"{}\", \"text\": \"long\"}}\n{{\"text\": \"b\"}}\n", "x".repeat(3 << 20));
    let cases: &[(&[u8], &str, &[&str])] = &[
        (b"\xef\xbb\xbf{\"text\":\"a\"}\n{\"text\":\"b\"}\n", "JSON lines, behind a byte order mark", &["a", "b"]),
        (b"\n \r\n\t{\"text\":\"a\"}\r\n\r\n{\"text\":\"b\"}", "JSON lines", &["a", "b"]),
        (long.as_bytes(), "JSON lines", &["long", "b"]),
        (
            b"{ \"text\" : \"a\" }{\"text\":\"b\"} {\"text\":\"c\"}\n{\"text\":\"d\"}",
            "JSON lines",
            &["a", "b", "c", "d"],
        ),
        (b"{\"text\":\"a\"}\n\xef\xbb\xbf{\"text\":\"b\"}\n", "JSON lines", &["a", "b"]),
        (b"\x1e{\"text\":\"a\"}\n", "plain text", &["\u{1e}{\"text\":\"a\"}\n"]),
        (b"{\"x\":NaN,\"text\":\"a\"}\n{\"text\":\"b\",\"y\":[-Infinity]}\n", "JSON lines", &["a", "b"]),
        (b"[{\"text\":\"a\"},\n {\"text\":\"b\"}]\n", "a JSON array", &["a", "b"]),
        (
            b"\xef\xbb\xbf[\n{\"text\":\"a ]}\\\"\"}\n,{\"text\":\"b\"},]",
            "a JSON array, behind a byte order mark",
            &["a ]}\"", "b"],
        ),
        (b"[]\n", "a JSON array", &[]),
        (b"{\n  \"text\": \"a\"\n}\n{\n  \"text\": \"b\"\n}\n", "JSON objects over several lines", &["a", "b"]),
        (b"{\\rm old} \"TeX\"\n", "plain text", &["{\\rm old} \"TeX\"\n"]),
        (b"[1] A. Author, \"Title\"\n", "plain text", &["[1] A. Author, \"Title\"\n"]),
        (b"[\"Quoted\"] text", "a JSON array", &[]),
        (b"[\"Quoted\" text]", "plain text", &["[\"Quoted\" text]"]),
        (b"PAR1 is a mark", "plain text", &["PAR1 is a mark"]),
        (b"BZh9 are letters", "plain text", &["BZh9 are letters"]),
    ];
    for (content, words, want) in cases {
        let shown = String::from_utf8_lossy(&content[..content.len().min(60)]);
        assert_eq!(open("part-00000", content, &auto()).unwrap().format, *words, "{shown}");
        if *words != "a JSON array" || !want.is_empty() {
            assert_eq!(texts("part-00000", content, &auto()), *want, "{shown}");
        }
        assert_eq!(
            open("p", &gzip(content), &auto()).unwrap().format,
            format!(
                "{} in gzip{}",
                words.split(", behind").next().unwrap(),
                if words.contains(',') { ", behind a byte order mark" } else { "" }
            )
        );
    }
}

/// Nothing that might be JSON becomes plain text unless that is asked for.
#[test]
fn what_begins_like_json_is_never_text_in_silence() {
    for content in [
        "{\"quoted\" words}\nmore",
        "{'text': 'of Python'}\n",
        "{\"text\": \"cut",
        "[{\"text\": \"cut\n\"}]",
        "{\"a\": }",
    ] {
        let e = error("a", content.as_bytes(), &auto());
        assert!(e.fact.contains("a begins like JSON") && e.to_string().contains("--format text"), "{content}: {e}");
        assert_eq!(texts("a", content.as_bytes(), &rules(Format::Text, Split::File)), [content]);
    }
    let e = error("a", b"[\"one\", \"two\"]", &auto());
    assert!(e.fact.contains("a:1: a string, not an object"), "{e}");
    let e = error("a", b"some\0bytes", &auto());
    assert!(e.fact.contains("zero bytes"), "{e}");
    assert_eq!(texts("a", b"some\0bytes", &rules(Format::Text, Split::File)), ["some\0bytes"]);
}

/// An array, or rows over several lines, are read whole or not at all.
#[test]
fn broken_arrays_are_refused_even_where_bad_rows_are_skipped() {
    let skip = SourceRules { skip_bad: true, ..auto() };
    for (content, words) in [
        ("[{\"text\":\"a\"} {\"text\":\"b\"}]", "x.json:1: no comma"),
        ("[{\"text\":\"a\"},\n{\"text\":\"b\"}\n", "x.json:3: the array is not closed"),
        ("[{\"text\":\"a\"},\n{\"text\":\"b", "x.json:2: the last row is not complete"),
        ("{\n\"text\":\"a\"\n}\n{\n\"text\" \"b\"\n}\n", "x.json:5: not JSON"),
    ] {
        let e = error("x.json", content.as_bytes(), &skip);
        assert!(e.fact.contains(words) && !e.to_string().contains("--skip-bad"), "{content}: {e}");
    }
    let (got, skipped) = read("x.json", b"[{\"text\":\"a\"}, null, 5, {\"text\":1}, {\"text\":\"b\"}]", &skip);
    assert_eq!((got.len(), skipped), (2, 3));
}

#[test]
fn containers_and_encodings_are_named() {
    let utf16 = |text: &str| text.encode_utf16().flat_map(u16::to_le_bytes).collect::<Vec<u8>>();
    let mut tar = b"rows.jsonl".to_vec();
    tar.resize(257, 0);
    tar.extend(b"ustar\x0000");
    for (content, word) in [
        (b"\xfd7zXZ\0....".to_vec(), "an xz file"),
        (b"BZh91AY&SY....".to_vec(), "a bzip2 file"),
        (b"PK\x03\x04....".to_vec(), "a zip archive"),
        (tar.clone(), "a tar archive"),
        (gzip(&tar), "holds a tar archive"),
        ([b"\xff\xfe".to_vec(), utf16("{\"text\":\"a\"}\n")].concat(), "UTF-16"),
        (utf16("{\"text\":\"a\"}\n"), "UTF-16"),
        (zstd(&utf16("{\"text\":\"a\"}\n")), "UTF-16"),
        (b"WARC/1.0\r\n".to_vec(), "a WARC archive"),
        (b"MMIDIDX\0\0\x01".to_vec(), "the index of a token file"),
    ] {
        for format in [Format::Auto, Format::Jsonl] {
            let e = error("x", &content, &rules(format, Split::File));
            assert!(
                e.exit == Exit::Data && e.fact.contains(word) && !e.to_string().contains("skip-bad"),
                "{word}: {e}"
            );
        }
    }
}

#[test]
fn jsonl_errors_name_the_line() {
    let cases: &[(&[u8], &str)] = &[
        (b"{\"text\": \"ok\"}\n\n{\"text\": \n", "x.jsonl:3: not JSON"),
        (b"{\"text\": \"ok\"}\n[1]\n", "x.jsonl:2: an array, not an object"),
        (b"{\"text\": 5}\n", "x.jsonl:1: \"text\" is a number, not a string"),
        (b"{\"body\": \"\", \"url\": 1}\n", "x.jsonl:1: no key \"text\" (there is: body, url)"),
        (b"{\"text\": \"\xff\"}\n", "x.jsonl:1: not JSON"),
        (b"{\"text\": \"ok\"}{\"text\": x}\n", "x.jsonl:1: not JSON: expected value at column 24"),
        (b"no JSON\n", "x.jsonl:1: not JSON"),
    ];
    for (content, want) in cases {
        let e = error("x.jsonl", content, &auto());
        assert!(e.exit == Exit::Data && e.fact.contains(want), "{e}");
        // Only where other rows are good is it offered to leave one out.
        assert_eq!(e.to_string().contains("--skip-bad"), content.starts_with(b"{\"text\": \"ok\"}"), "{e}");
        let skip = SourceRules { skip_bad: true, ..auto() };
        let (got, skipped) = read("x.jsonl", content, &skip);
        assert!(skipped == 1 && got.iter().all(|d| d.is_ok()), "{want}");
    }
    let e = error("x.jsonl", b"{\"text\": 1}\n{\"text\": \"fine\"}\n", &auto());
    assert!(e.to_string().contains("--skip-bad"), "{e}");
}

#[test]
fn invalid_utf8_is_placed() {
    let (got, _) = read("x.txt", b"fine\nalso\n\nbad \xe9 here\n", &rules(Format::Text, Split::BlankLines));
    let e = got[1].as_ref().unwrap_err();
    assert!(e.fact.contains("x.txt:4: byte 0xe9 at column 5") && e.to_string().contains("--skip-bad"), "{e}");
    let (got, _) = read("x.txt", b"fine\nalso\n\nbad \xe9 here\n", &rules(Format::Text, Split::File));
    let e = got[0].as_ref().unwrap_err();
    assert!(e.fact.contains("x.txt:4: byte 0xe9 at column 5") && e.to_string().contains("iconv"), "{e}");
}
