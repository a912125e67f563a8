use super::*;
use std::io::{Cursor, Write};

fn rules(format: Format, split: Split) -> Rules {
    Rules { format, split, text_key: "text".into(), skip_bad: false }
}

fn read(name: &str, content: &[u8], rules: &Rules) -> (Vec<Result<String>>, u64) {
    let raw = Counting { inner: Box::new(Cursor::new(content.to_vec())), consumed: Arc::default() };
    let mut d = Documents::of(name, raw, rules).unwrap();
    let all = (&mut d).collect();
    (all, d.skipped)
}

fn texts(name: &str, content: &[u8], rules: &Rules) -> Vec<String> {
    read(name, content, rules).0.into_iter().map(|d| d.unwrap()).collect()
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
    }
}

#[test]
fn compression_is_told_by_content() {
    let text = "{\"text\": \"a\"}\n{\"text\": \"b\"}\n".repeat(1000);
    let gzip = |part: &str| {
        let mut w = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        w.write_all(part.as_bytes()).unwrap();
        w.finish().unwrap()
    };
    let zstd = |part: &str| zstd::encode_all(part.as_bytes(), 1).unwrap();
    let (a, b) = text.split_at(text.len() / 2);
    let auto = rules(Format::Auto, Split::File);
    // Several members or frames in a row are one file.
    for packed in [text.clone().into_bytes(), [gzip(a), gzip(b)].concat(), [zstd(a), zstd(b)].concat()] {
        assert_eq!(texts("noname", &packed, &auto).len(), 2000);
        if packed.len() < text.len() {
            let (got, _) = read("cut.jsonl", &packed[..packed.len() - 6], &auto);
            let e = got.last().unwrap().as_ref().unwrap_err();
            assert!(e.exit == Exit::Data && e.fact.contains("cannot decompress cut.jsonl"), "{e}");
        }
    }
}

#[test]
fn jsonl_errors_name_the_line() {
    let auto = rules(Format::Auto, Split::File);
    let cases: &[(&[u8], &str)] = &[
        (b"{\"text\": \"ok\"}\n\n{\"text\": \n", "x.jsonl:3: not JSON"),
        (b"{\"text\": \"ok\"}\n[1]\n", "x.jsonl:2: an array, not an object"),
        (b"{\"text\": 5}\n", "x.jsonl:1: \"text\" is a number, not a string"),
        (b"{\"body\": \"\", \"url\": 1}\n", "x.jsonl:1: no key \"text\" (there is: body, url)"),
        (b"{\"text\": \"\xff\"}\n", "x.jsonl:1: not JSON"),
    ];
    for (content, want) in cases {
        let (got, _) = read("x.jsonl", content, &auto);
        let e = got.last().unwrap().as_ref().unwrap_err();
        assert!(e.exit == Exit::Data && e.fact.contains(want), "{e}");
        let skip = Rules { skip_bad: true, ..auto.clone() };
        let (got, skipped) = read("x.jsonl", content, &skip);
        assert!(skipped == 1 && got.iter().all(|d| d.is_ok()), "{want}");
    }
}

#[test]
fn invalid_utf8_is_placed() {
    let (got, _) = read("x.txt", b"fine\nalso\n\nbad \xe9 here\n", &rules(Format::Text, Split::BlankLines));
    let e = got[1].as_ref().unwrap_err();
    assert!(e.fact.contains("x.txt:4: byte 0xe9 at column 5"), "{e}");
    let (got, _) = read("x.txt", b"fine\nalso\n\nbad \xe9 here\n", &rules(Format::Text, Split::File));
    let e = got[0].as_ref().unwrap_err();
    assert!(e.fact.contains("x.txt:4: byte 0xe9 at column 5"), "{e}");
}

#[test]
fn text_that_begins_with_a_brace_is_text() {
    let auto = rules(Format::Auto, Split::File);
    assert_eq!(texts("a", b"{\"quoted\" words}\nmore", &auto), ["{\"quoted\" words}\nmore"]);
    assert_eq!(texts("a", b"{\"text\":\"t\"}", &auto), ["t"]);
    assert_eq!(texts("a.json.gz", b"{\"text\":\"\\ud83e\\udd80\"}", &auto), ["🦀"]);
}
