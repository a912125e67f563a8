//! Texts to tokenize: encodings, containers, spellings of JSON, Parquet, and names that clash.

use super::table::{case, put, Case};
use crate::support::{herd, text};
use herd::data::Tokenizer;
use parquet::basic::{Compression, ZstdLevel};
use parquet::data_type::{ByteArray, ByteArrayType, Int32Type};
use parquet::file::properties::WriterProperties;
use parquet::file::writer::SerializedFileWriter;
use parquet::schema::parser::parse_message_type;
use std::io::Write;
use std::path::Path;
use std::sync::Arc;

const TOKENIZE: &str = "data tokenize -t bytes -o out rows";
const TWO: &str = "{\"text\": \"owl\"}\n{\"text\": \"elk\"}\n";

fn two(dir: &Path) {
    put(dir, "rows", TWO);
}

fn marked(dir: &Path) {
    put(dir, "rows", ["\u{feff}", TWO].concat());
}

fn gzip(content: &[u8]) -> Vec<u8> {
    let mut w = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    w.write_all(content).unwrap();
    w.finish().unwrap()
}

/// Two members, and the zeros that fill a block of a tape.
fn tape(dir: &Path) {
    put(dir, "rows", [gzip(b"{\"text\": \"owl\"}\n"), gzip(b"{\"text\": \"elk\"}\n"), vec![0; 10240]].concat());
}

/// Frames between skippable ones, the first with a window of 2 GiB.
fn frames(dir: &Path) {
    let skippable = b"\x50\x2a\x4d\x18\x02\0\0\0zz";
    let mut far = zstd::stream::Encoder::new(Vec::new(), 1).unwrap();
    far.window_log(31).unwrap();
    far.write_all(b"{\"text\": ").unwrap();
    far.flush().unwrap();
    far.write_all(b"\"owl\"}\n").unwrap();
    let (far, near) = (far.finish().unwrap(), zstd::encode_all(&b"{\"text\": \"elk\"}\n"[..], 3).unwrap());
    put(dir, "rows", [&skippable[..], &far, skippable, &near, skippable].concat());
}

fn array(dir: &Path) {
    put(dir, "rows", "\n[\n  {\"text\": \"owl\", \"score\": NaN},\n  {\"text\": \"elk\", \"score\": -Infinity}\n]\n");
}

fn glued(dir: &Path) {
    put(dir, "rows", "{\"text\": \"owl\"}{\"text\": \"elk\"}");
}

fn indented(dir: &Path) {
    put(dir, "rows", "{\n \"text\": \"owl\"\n}\n{\n \"text\": \"elk\"\n}\n");
}

fn not_quite(dir: &Path) {
    put(dir, "rows", "{'text': 'owl'}\n{'text': 'elk'}\n");
}

fn cut_array(dir: &Path) {
    put(dir, "rows.json", "[{\"text\": \"owl\"},\n{\"text\": \"elk\"},\n");
}

fn one_bad(dir: &Path) {
    put(dir, "rows", [TWO, "{\"text\": 3}\n", TWO].concat());
}

fn wrong_key(dir: &Path) {
    put(
        dir,
        "rows",
        "{\"body\": \"owl\", \"meta\": {\"title\": \"bird\"}}\n{\"body\": \"elk\", \"meta\": {\"title\": \"deer\"}}\n",
    );
}

fn foreign(dir: &Path) {
    put(dir, "rows.xz", b"\xfd7zXZ\0\0\x04\xe6\xd6\xb4\x46");
    put(dir, "rows.bz2", b"BZh91AY&SY\xc4\x00");
    put(dir, "rows.zip", b"PK\x03\x04\x14\0\0\0\x08\0");
    let mut tar = b"rows.jsonl".to_vec();
    tar.resize(257, 0);
    tar.extend(b"ustar  \0");
    tar.resize(1024, b' ');
    put(dir, "rows.tar", &tar);
    put(dir, "rows.tar.gz", gzip(&tar));
    put(dir, "rows.utf16", TWO.encode_utf16().flat_map(u16::to_be_bytes).collect::<Vec<u8>>());
}

/// Columns `id`, `text` (one of them null), and `meta.title`.
fn parquet(dir: &Path, name: &str, compression: Compression) {
    let schema = "message rows { required int32 id; optional binary text (UTF8);
        optional group meta { optional binary title (UTF8); } }";
    let properties = WriterProperties::builder().set_compression(compression).build();
    let file = std::fs::File::create(dir.join(name)).unwrap();
    let schema = Arc::new(parse_message_type(schema).unwrap());
    let mut writer = SerializedFileWriter::new(file, schema, Arc::new(properties)).unwrap();
    for (texts, titles) in [(["owl", ""], ["bird", "none"]), (["elk", "ünï"], ["deer", "word"])] {
        let bytes = |words: [&str; 2]| words.map(|w| ByteArray::from(w.as_bytes().to_vec()));
        let mut group = writer.next_row_group().unwrap();
        let mut column = group.next_column().unwrap().unwrap();
        column.typed::<Int32Type>().write_batch(&[1, 2], None, None).unwrap();
        column.close().unwrap();
        for (words, depth) in [(texts, 1), (titles, 2)] {
            let mut column = group.next_column().unwrap().unwrap();
            column.typed::<ByteArrayType>().write_batch(&bytes(words), Some(&[depth, depth]), None).unwrap();
            column.close().unwrap();
        }
        group.close().unwrap();
    }
    writer.close().unwrap();
}

fn tables(dir: &Path) {
    parquet(dir, "rows", Compression::SNAPPY);
    parquet(dir, "rows.zstd", Compression::ZSTD(ZstdLevel::default()));
    parquet(dir, "rows.gz", Compression::GZIP(Default::default()));
    parquet(dir, "rows.lz4", Compression::LZ4_RAW);
    parquet(dir, "rows.plain", Compression::UNCOMPRESSED);
}

fn broken_table(dir: &Path) {
    parquet(dir, "whole", Compression::SNAPPY);
    let whole = std::fs::read(dir.join("whole")).unwrap();
    put(dir, "rows", &whole[..whole.len() - 9]);
    put(dir, "holes", [&whole[..8], &vec![0xff; 60][..], &whole[68..]].concat());
}

fn clash(dir: &Path) {
    put(dir, "out.json", TWO);
}

fn foreign_sidecar(dir: &Path) {
    two(dir);
    put(dir, "out.json", "{\"some\": \"thing of the user's\"}");
}

fn other_name(dir: &Path) {
    clash(dir);
    std::fs::hard_link(dir.join("out.json"), dir.join("rows")).unwrap();
}

fn made(dir: &Path, args: &str) {
    let made = herd().arg("data").args(args.split_whitespace()).current_dir(dir).output().unwrap();
    assert!(made.status.success(), "{}", text(&made));
}

/// Two token files of two documents, one of another tokenizer's end of text, one of Megatron's.
fn shards(dir: &Path) {
    two(dir);
    put(dir, "more", "{\"text\": \"ewe\"}\n{\"text\": \"emu\"}\n");
    made(dir, "tokenize -t bytes -o a rows");
    made(dir, "tokenize -t bytes -o b more");
    made(dir, "tokenize -t bytes -o bare more");
    made(dir, "tokenize -t bytes -o other more --no-eos");
    made(dir, "tokenize -t bytes -o begins more --bos <|begin_of_text|>");
    std::fs::remove_file(dir.join("bare.json")).unwrap();
}

fn begun(dir: &Path) {
    put(dir, "rows", "{\"text\": \"owl\"}\n{\"text\": \"<|begin_of_text|>elk\"}\n");
}

/// `bytes` as a tokenizer.json whose post-processor puts begin-of-text in front.
fn own_rule(dir: &Path) {
    two(dir);
    std::fs::create_dir(dir.join("own")).unwrap();
    let files = Tokenizer::open("bytes").unwrap().files();
    for (name, content) in files.into_iter().filter(|(name, _)| name != "herd_tokenizer.json") {
        let rule = r#""post_processor": {"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "<|begin_of_text|>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}], "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}], "special_tokens": {"<|begin_of_text|>": {"id": "<|begin_of_text|>", "ids": [256], "tokens": ["<|begin_of_text|>"]}}}"#;
        put(dir, &format!("own/{name}"), String::from_utf8(content).unwrap().replace("\"post_processor\": null", rule));
    }
}

fn own_rule_begun(dir: &Path) {
    own_rule(dir);
    begun(dir);
}

fn broken_companion(dir: &Path) {
    own_rule(dir);
    put(dir, "own/special_tokens_map.json", "{");
}

/// Joining token files, and tokens around documents.
pub fn tokens() -> Vec<Case> {
    vec![
        case("two shards", shards, "data merge -o out b a.idx")
            .writes("out", &["ewe|", "emu|", "owl|", "elk|"])
            .says(&["out: 4 documents, 16 tokens (u16) of 2 token files"]),
        case("a shard over itself", shards, "data merge -o a a b --force")
            .refused(2)
            .says(&["a.bin would be written", "read"]),
        case("a shard twice", shards, "data merge -o out a.bin a.idx").refused(2).says(&["a is given twice"]),
        case("shards with other ends", shards, "data merge -o out a other")
            .refused(11)
            .says(&["token after each document", "257"]),
        case("a shard that says nothing", shards, "data merge -o out a bare")
            .refused(11)
            .says(&["bare does not say", "bare.json"]),
        case("a token before and one after", two, "data tokenize -t bytes -o out rows --bos <|begin_of_text|>")
            .writes("out", &["^owl|", "^elk|"]),
        case("another token after", two, "data tokenize -t bytes -o out rows --eos <|begin_of_text|>")
            .writes("out", &["owl^", "elk^"]),
        case("what the tokenizer itself puts before", own_rule, "data tokenize -t own -o out rows")
            .writes("out", &["^owl|", "^elk|"])
            .says(&["each document: <|begin_of_text|> [256] in front", "post-processor"]),
        case("nothing before, whatever its rule", own_rule, "data tokenize -t own -o out rows --no-bos")
            .writes("out", &["owl|", "elk|"])
            .says(&["nothing in front, as asked for"]),
        case("a token before, and none", two, "data tokenize -t bytes -o out rows --no-bos --bos <|begin_of_text|>")
            .fails(2)
            .says(&["--no-bos"]),
        // its name in a text is characters, as every name is
        case("a text that has by itself what the rule puts there", own_rule_begun, "data tokenize -t own -o out rows")
            .says(&["each document: <|begin_of_text|> [256] in front"]),
        case(
            "what the rule puts there after each as well",
            own_rule,
            "data tokenize -t own -o out rows --eos <|begin_of_text|>",
        )
        .refused(2)
        .says(&["256", "post-processor"]),
        case("shards with other beginnings", shards, "data merge -o out a begins")
            .refused(11)
            .says(&["tokens before each document", "256"]),
        case("a shard with a beginning", shards, "data inspect begins").says(&["[256] before each document"]),
        case("a companion of a tokenizer that is no JSON", broken_companion, "data tokenize -t own -o out rows")
            .refused(11)
            .says(&["special_tokens_map.json is not JSON"]),
        case("a token that is none", two, "data tokenize -t bytes -o out rows --bos <s>")
            .refused(11)
            .says(&["no special token", "<s>"]),
        case("one token at both ends", two, "data tokenize -t bytes -o out rows --bos <|end_of_text|>")
            .refused(2)
            .says(&["257"]),
        case("a text that has it already", begun, "data tokenize -t bytes -o out rows --bos <|begin_of_text|>")
            .refused(11)
            .says(&["begins with <|begin_of_text|> already"]),
    ]
}

pub fn rows() -> Vec<Case> {
    let both = |case: Case| case.writes("out", &["owl|", "elk|"]);
    let mut rows = vec![
        both(case("a byte order mark", marked, TOKENIZE)).says(&["JSON lines, behind a byte order mark"]),
        both(case("the same through a pipe", marked, "data tokenize -t bytes -o out -").pipe("rows"))
            .says(&["standard input as JSON lines"]),
        both(case("gzip as tapes have it", tape, TOKENIZE)).says(&["JSON lines in gzip"]),
        both(case("gzip through a pipe", tape, "data tokenize -t bytes -o out -").pipe("rows")),
        both(case("zstd with long windows and skippable frames", frames, TOKENIZE)).says(&["JSON lines in zstd"]),
        both(case("an array", array, TOKENIZE)).says(&["a JSON array"]),
        both(case("an array through a pipe", array, "data tokenize -t bytes -o out -").pipe("rows")),
        both(case("glued rows", glued, TOKENIZE)),
        both(case("indented rows", indented, TOKENIZE)).says(&["over several lines"]),
        case("dictionaries of Python", not_quite, TOKENIZE)
            .refused(11)
            .says(&["begins like JSON", "--format text"])
            .never(&["--skip-bad"]),
        case(
            "the same, asked for as text",
            not_quite,
            "data tokenize -t bytes -o out --split-documents line --format text rows",
        )
        .writes("out", &["{'text': 'owl'}|", "{'text': 'elk'}|"])
        .says(&["plain text"]),
        case("an array that is cut off", cut_array, "data tokenize -t bytes -o out rows.json --skip-bad")
            .refused(11)
            .says(&["rows.json:3", "not closed"]),
        case("one bad row", one_bad, TOKENIZE).refused(11).says(&["rows:3", "is a number", "--skip-bad"]),
        case("one bad row, left out", one_bad, "data tokenize -t bytes -o out rows --skip-bad")
            .writes("out", &["owl|", "elk|", "owl|", "elk|"])
            .says(&["1 skipped as bad; the first: rows:3"]),
        case("another key", wrong_key, TOKENIZE)
            .refused(11)
            .says(&["no key \"text\" (there is: body, meta)", "--text-key"])
            .never(&["--skip-bad"]),
        case("another key, every row skipped", wrong_key, "data tokenize -t bytes -o out rows --skip-bad")
            .refused(11)
            .says(&["no document", "2 skipped as bad", "no key \"text\""]),
        both(case("a key that is named", wrong_key, "data tokenize -t bytes -o out rows --text-key body")),
        case(
            "keys inside others",
            wrong_key,
            "data tokenize -t bytes -o out rows --text-key meta.title --text-key body",
        )
        .writes("out", &["bird\n\nowl|", "deer\n\nelk|"]),
        case("a result over its input", clash, "data tokenize -t bytes -o out out.json")
            .refused(2)
            .says(&["out.json would be written, but it is read"])
            .never(&["--force"]),
        case("a result over its input, forced", clash, "data tokenize -t bytes -o out out.json --force").refused(2),
        case("a result over its input under another name", other_name, "data tokenize -t bytes -o out rows --force")
            .refused(2)
            .says(&["out.json would be written"]),
        case("a result over a file that is not herd's", foreign_sidecar, "data tokenize -t bytes -o out rows --force")
            .refused(2)
            .says(&["not part of a token file"]),
        case("a Parquet file", tables, TOKENIZE)
            .writes("out", &["owl|", "elk|", "ünï|"])
            .says(&["read rows as Parquet: 3 documents, 1 without text left out"]),
        case(
            "a nested column",
            tables,
            "data tokenize -t bytes -o out rows.zstd --text-key meta.title --text-key text",
        )
        .writes("out", &["bird\n\nowl|", "none|", "deer\n\nelk|", "word\n\nünï|"]),
        case("other packings", tables, "data tokenize -t bytes -o out rows.gz rows.lz4 rows.plain")
            .says(&["rows.gz and 2 more as Parquet: 9 documents"]),
        case("a column that is not there", tables, "data tokenize -t bytes -o out rows --text-key body")
            .refused(11)
            .says(&["no column \"body\" (there is: id, text, meta)", "--text-key"]),
        case("a column of numbers", tables, "data tokenize -t bytes -o out rows --text-key id")
            .refused(11)
            .says(&["column \"id\" does not hold strings"]),
        case("Parquet through a pipe", tables, "data tokenize -t bytes -o out -")
            .pipe("rows")
            .refused(11)
            .says(&["Parquet", "pipe"]),
        case("a Parquet file that is cut off", broken_table, TOKENIZE).refused(11).says(&["Parquet", "cut off"]),
        case("a Parquet file with a hole", broken_table, "data tokenize -t bytes -o out holes")
            .refused(11)
            .says(&["Parquet"]),
        case("a Parquet file as JSON", tables, "data tokenize -t bytes -o out rows --format jsonl")
            .refused(11)
            .says(&["is a Parquet file, but --format says jsonl"]),
    ];
    let named = [
        ("data tokenize -t bytes -o out rows.xz", "an xz file"),
        ("data tokenize -t bytes -o out rows.bz2", "a bzip2 file"),
        ("data tokenize -t bytes -o out rows.zip", "a zip archive"),
        ("data tokenize -t bytes -o out rows.tar", "a tar archive"),
        ("data tokenize -t bytes -o out rows.tar.gz", "holds a tar archive"),
        ("data tokenize -t bytes -o out rows.utf16", "UTF-16"),
    ];
    let refused = |(args, what): (&'static str, &'static str)| {
        case(what, foreign, args).refused(11).says(&[what]).never(&["skip-bad"])
    };
    rows.extend(named.map(refused));
    rows
}
