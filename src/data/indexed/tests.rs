mod large;

use super::*;
use crate::error::{Exit, Result};

fn about(vocab_size: usize) -> IndexedWritten {
    IndexedWritten {
        tokenizer: TokenizerNote {
            spec: "bytes".into(),
            kind: "bytes".into(),
            fingerprint: "f".into(),
            vocab_size,
            front: Vec::new(),
            eos: Some(0),
        },
        chat: None,
        sources: vec!["a.txt".into()],
        split: "all".into(),
        holdout: 0.0,
        text_bytes: 1,
    }
}

fn write(prefix: &Path, vocab: usize, documents: &[Vec<u32>]) -> Sidecar {
    let mut w = IndexedWriter::create(prefix, vocab).unwrap();
    documents.iter().for_each(|d| w.push(d).unwrap());
    w.finish(about(vocab)).unwrap()
}

/// Documents of 0 to 40 random ids below `vocab`, the highest id among them.
fn documents(vocab: usize, count: u64) -> Vec<Vec<u32>> {
    let random = |x: u64| crate::data::samples::mix(x.wrapping_mul(77)) % vocab as u64;
    let mut docs: Vec<Vec<u32>> =
        (0..count).map(|d| (0..d * 7 % 41).map(|i| random(d * 100 + i) as u32).collect()).collect();
    docs.push(vec![vocab as u32 - 1]);
    docs
}

fn read_all(prefix: &Path, vocab: usize) -> Result<Vec<i64>> {
    let f = Indexed::open(prefix)?;
    let mut ids = Vec::new();
    f.read(0, f.tokens() as usize, vocab, &mut ids)?;
    Ok(ids)
}

#[test]
fn round_trip_in_both_dtypes() {
    let dir = tempfile::tempdir().unwrap();
    for (vocab, dtype) in
        [(258, TokenDtype::U16), (65_536, TokenDtype::U16), (65_537, TokenDtype::I32), (128_256, TokenDtype::I32)]
    {
        let prefix = dir.path().join(format!("v{vocab}.5"));
        let docs = documents(vocab, 60);
        let note = write(&prefix, vocab, &docs);
        let f = Indexed::open(&prefix).unwrap();
        let flat: Vec<i64> = docs.iter().flatten().map(|&id| id as i64).collect();
        assert_eq!((f.dtype, f.documents(), f.sequences(), f.tokens()), (dtype, 61, 61, flat.len() as u64));
        assert_eq!(read_all(&prefix, vocab).unwrap(), flat);
        assert_eq!(
            f.document_lengths().collect::<Result<Vec<_>>>().unwrap(),
            docs.iter().map(|d| d.len() as u64).collect::<Vec<_>>()
        );
        assert_eq!(f.check_all(vocab, &Default::default()).unwrap(), Some(vocab as u32 - 1));
        assert_eq!(note.highest_id, Some(vocab as u32 - 1));
        assert_eq!(f.sidecar, Some(note));
    }
    let left: Vec<_> = std::fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(left.len(), 12, "no temporary file stays: {left:?}");
}

#[test]
fn the_empty_corpus_is_readable() {
    let dir = tempfile::tempdir().unwrap();
    let prefix = dir.path().join("none");
    write(&prefix, 258, &[]);
    let f = Indexed::open(&prefix).unwrap();
    assert_eq!((f.tokens(), f.documents(), f.check_all(258, &Default::default()).unwrap()), (0, 0, None));
}

#[test]
fn ids_outside_the_vocabulary_are_refused_both_ways() {
    let dir = tempfile::tempdir().unwrap();
    let prefix = dir.path().join("c");
    let mut w = IndexedWriter::create(&prefix, 258).unwrap();
    let e = w.push(&[1, 258]).unwrap_err();
    assert!(e.exit == Exit::Data && e.fact.contains("token 1: id 258 is outside the vocabulary of 258"), "{e}");
    drop(w);
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0, "an abandoned writer leaves nothing");

    write(&prefix, 258, &[vec![5, 6], vec![200]]);
    let e = read_all(&prefix, 200).unwrap_err();
    assert!(e.exit == Exit::Data && e.fact.contains("c.bin: token 2 is id 200"), "{e}");

    write(&prefix, 100_000, &[vec![5, 6]]);
    std::fs::write(with_ending(&prefix, ".bin"), [5u8, 0, 0, 0, 255, 255, 255, 255]).unwrap();
    let e = read_all(&prefix, 100_000).unwrap_err();
    assert!(e.fact.contains("token 1 is id -1"), "{e}");
}

#[test]
fn every_cut_of_either_file_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let prefix = dir.path().join("c");
    write(&prefix, 258, &documents(258, 6));
    for ending in [".idx", ".bin"] {
        let path = with_ending(&prefix, ending);
        let whole = std::fs::read(&path).unwrap();
        for cut in 0..whole.len() {
            std::fs::write(&path, &whole[..cut]).unwrap();
            let e = Indexed::open(&prefix).err().unwrap_or_else(|| panic!("{ending} cut at {cut} was accepted"));
            assert!(e.exit == Exit::Data && e.fact.contains(&format!("c{ending}")), "{cut}: {e}");
        }
        std::fs::write(&path, [&whole[..], b"\0\0"].concat()).unwrap();
        assert_eq!(Indexed::open(&prefix).err().unwrap().exit, Exit::Data, "{ending} too long");
        std::fs::write(&path, &whole).unwrap();
    }
    assert!(Indexed::open(&prefix).is_ok());
}

/// Changes of each field of the index, and what is said about them.
#[test]
fn corrupt_index_fields() {
    let dir = tempfile::tempdir().unwrap();
    let prefix = dir.path().join("c");
    write(&prefix, 258, &[vec![1, 2, 3], vec![4, 5], vec![6]]);
    let idx = with_ending(&prefix, ".idx");
    let whole = std::fs::read(&idx).unwrap();
    let (lengths, offsets, entries) = (34, 34 + 12, 34 + 36);
    let cases: &[(usize, &[u8], &str)] = &[
        (0, b"PK", "not with MMIDIDX"),
        (9, &[2], "version 2, herd reads 1"),
        (17, &[99], "dtype code 99"),
        (17, &[5], "dtype code 5 (i64)"),
        (17, &[4], "has 12 bytes"),
        (18, &[4], "cut off"),
        (18, &[255; 8], "cut off"),
        (26, &[255; 8], "cut off"),
        (26, &[0], "empty document index"),
        (lengths, &[255; 4], "sequence 0 has length -1"),
        (lengths, &[4], "sequence 1 starts at byte 6, but the ones before it end at 8"),
        (lengths + 8, &[2], "shorter than the 14"),
        (offsets + 8, &[7], "sequence 1 starts at byte 7"),
        (offsets, &[1], "sequence 0 starts at byte 1"),
        (entries, &[1], "document entry 0 is 1"),
        (entries + 8, &[3], "document entry 2 is 2 after 3"),
        (entries + 16, &[9], "document entry 2 is 9"),
        (entries + 24, &[2], "the last document ends at sequence 2 of 3"),
    ];
    for &(at, bytes, want) in cases {
        let mut bad = whole.clone();
        bad[at..at + bytes.len()].copy_from_slice(bytes);
        std::fs::write(&idx, &bad).unwrap();
        let e = Indexed::open(&prefix).err().unwrap_or_else(|| panic!("byte {at} = {bytes:?} was accepted"));
        let expected = if want == "has 12 bytes" { "offset" } else { want };
        let found = e.to_string();
        let ok = found.contains(expected) || (at == 17 && bytes == [4] && found.contains("starts at byte 6"));
        assert!(e.exit == Exit::Data && ok, "byte {at} = {bytes:?}: {found}");
    }
}

/// Random single-byte damage: never a panic, and never other ids without a word (the checksum sees the .bin).
#[test]
fn random_damage_is_found_or_harmless() {
    let dir = tempfile::tempdir().unwrap();
    let prefix = dir.path().join("c");
    let docs = documents(258, 12);
    write(&prefix, 258, &docs);
    let flat: Vec<i64> = docs.iter().flatten().map(|&id| id as i64).collect();
    for ending in [".idx", ".bin", ".json"] {
        let path = with_ending(&prefix, ending);
        let whole = std::fs::read(&path).unwrap();
        for i in 0..400u64 {
            let r = crate::data::samples::mix(i + 1);
            let mut bad = whole.clone();
            let at = r as usize % bad.len();
            bad[at] ^= 1 << (r >> 40 & 7);
            std::fs::write(&path, &bad).unwrap();
            let outcome = Indexed::open(&prefix)
                .and_then(|f| f.check_all(258, &Default::default()))
                .and_then(|_| read_all(&prefix, 258));
            match outcome {
                Err(e) => assert_eq!(e.exit, Exit::Data, "{ending} byte {at}: {e}"),
                Ok(ids) => assert!(ending != ".bin" && ids == flat, "{ending} byte {at} changed ids unseen"),
            }
        }
        std::fs::write(&path, &whole).unwrap();
    }
}

#[test]
fn a_sidecar_of_another_run_is_found_and_a_foreign_json_ignored() {
    let dir = tempfile::tempdir().unwrap();
    let (a, b) = (dir.path().join("a"), dir.path().join("b"));
    write(&a, 258, &[vec![1, 2]]);
    write(&b, 258, &[vec![1, 2, 3]]);
    std::fs::copy(with_ending(&b, ".json"), with_ending(&a, ".json")).unwrap();
    assert!(Indexed::open(&a).err().unwrap().fact.contains("3 tokens"));
    std::fs::write(with_ending(&a, ".json"), r#"{"some": "thing"}"#).unwrap();
    assert_eq!(Indexed::open(&a).unwrap().sidecar, None);
    std::fs::remove_file(with_ending(&a, ".json")).unwrap();
    assert_eq!(read_all(&a, 258).unwrap(), [1, 2]);
}

#[test]
fn missing_files_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let e = Indexed::open(&dir.path().join("none")).err().unwrap();
    assert!(e.exit == Exit::Data && e.fact.contains("none.idx: no such file"), "{e}");
    assert_eq!(prefix_of(Path::new("x/corpus.v1.idx")), Path::new("x/corpus.v1"));
    assert_eq!(prefix_of(Path::new("x/corpus.v1")), Path::new("x/corpus.v1"));
}
