//! Indices of which only pages are read: a billion documents in a sparse file, and damage that a start does not see.

use super::*;
use std::fs::File;
use std::os::unix::fs::FileExt;

/// Documents of 1 to 64 ids behind many empty ones, as Megatron would write them but for the blocks that stay holes.
struct Sparse {
    prefix: PathBuf,
    empty: u64,
    lengths: Vec<u64>,
}

impl Sparse {
    /// `empty` documents without tokens, whose sequences all belong to the last of them, then `real` others.
    fn write(prefix: &Path, empty: u64, real: u64) -> Sparse {
        let lengths: Vec<u64> = (0..real).map(|d| 1 + crate::data::samples::mix(d) % 64).collect();
        let (n, tokens) = (empty + real, lengths.iter().sum::<u64>());
        let idx = File::create(with_ending(prefix, ".idx")).unwrap();
        let header = [&MAGIC[..], &1u64.to_le_bytes(), &[8], &n.to_le_bytes(), &(n + 1).to_le_bytes()].concat();
        idx.write_all_at(&header, 0).unwrap();
        let column = |bytes: Vec<u8>, at: u64| idx.write_all_at(&bytes, HEADER as u64 + at).unwrap();
        column(lengths.iter().flat_map(|&l| (l as u32).to_le_bytes()).collect(), 4 * empty);
        let starts = lengths.iter().scan(0, |at, l| Some(std::mem::replace(at, *at + 2 * l)));
        column(starts.flat_map(u64::to_le_bytes).collect(), 4 * n + 8 * empty);
        column((empty..=n).flat_map(u64::to_le_bytes).collect(), 12 * n + 8 * empty);
        File::create(with_ending(prefix, ".bin")).unwrap().set_len(2 * tokens).unwrap();
        Sparse { prefix: prefix.into(), empty, lengths }
    }

    /// Where each document with tokens begins, and the end.
    fn starts(&self) -> Vec<u64> {
        let ends = self.lengths.iter().scan(0, |at, l| Some(std::mem::replace(at, *at + l)));
        ends.chain([self.lengths.iter().sum()]).collect()
    }
}

/// The facts as another rank gets them.
fn told(prefix: &Path, blocks: u64) -> Result<Indexed> {
    let facts = Indexed::look(prefix, |_| IndexExtent::Blocks(blocks))?.facts()?;
    let facts: IndexedFacts = serde_json::from_slice(&serde_json::to_vec(&facts).unwrap()).unwrap();
    Ok(Indexed::given(&facts))
}

#[test]
fn a_billion_documents_open_and_are_looked_up() {
    let dir = tempfile::tempdir().unwrap();
    let sparse = Sparse::write(&dir.path().join("c"), 999_000_000, 1_000_000);
    let began = std::time::Instant::now();
    let file = told(&sparse.prefix, 256).unwrap();
    let opened = began.elapsed();
    assert_eq!((file.documents(), file.tokens()), (1_000_000_000, sparse.lengths.iter().sum()));
    let starts = sparse.starts();
    for i in 0..2_000u64 {
        let first = crate::data::samples::mix(i) % (file.tokens() - 200);
        let after = starts.partition_point(|&s| s <= first);
        let want: Vec<u64> = starts[after..].iter().copied().take_while(|&s| s < first + 200).collect();
        assert_eq!(file.document_starts(first..first + 200).unwrap(), want, "from token {first}");
    }
    assert!(opened.as_secs() < 2, "{opened:?}");
}

/// What a start reads of a large index it checks; what it does not read is found when it is used.
#[test]
fn damage_between_the_blocks_is_found_when_it_is_used() {
    let dir = tempfile::tempdir().unwrap();
    let sparse = Sparse::write(&dir.path().join("c"), 1_000, 200_000);
    let n = sparse.empty + sparse.lengths.len() as u64;
    let idx = File::options().read(true).write(true).open(with_ending(&sparse.prefix, ".idx")).unwrap();
    let starts = sparse.starts();
    let all = |file: &Indexed| -> Result<Vec<u64>> {
        let mut found = vec![0];
        for first in (0..file.tokens()).step_by(5_000) {
            found.extend(file.document_starts(first..file.tokens().min(first + 5_000))?);
            found.extend(starts.contains(&(first + 5_000)).then_some(first + 5_000));
        }
        Ok(found.into_iter().filter(|&s| s < file.tokens()).collect())
    };
    let file = told(&sparse.prefix, 40).unwrap();
    assert_eq!(all(&file).unwrap(), starts[..starts.len() - 1]);
    let columns = [(0, 4u64), (4 * n, 8), (12 * n, 8)];
    let (mut at_start, mut when_used) = (0, 0);
    for i in 0..60u64 {
        let r = crate::data::samples::mix(i + 5);
        let (column, width) = columns[(i % 3) as usize];
        // An entry of the document index that stays between its neighbours cuts documents otherwise: no damage to be seen.
        let byte_of = if i % 3 == 2 { 4 } else { (r >> 40) % 3 };
        let place = HEADER as u64 + column + width * (sparse.empty + 1 + r % (n - sparse.empty - 2)) + byte_of;
        let mut byte = [0];
        idx.read_exact_at(&mut byte, place).unwrap();
        idx.write_all_at(&[byte[0] ^ (1 << (r >> 50 & 7))], place).unwrap();
        match told(&sparse.prefix, 40) {
            Err(e) => {
                assert_eq!(e.exit, Exit::Data, "{e}");
                at_start += 1;
            }
            Ok(file) => {
                let e = all(&file).expect_err("damage gives other places without a word");
                assert!(e.exit == Exit::Data && e.fact.contains("c.idx"), "{e}");
                when_used += 1;
            }
        }
        assert_eq!(Indexed::open(&sparse.prefix).err().map(|e| e.exit), Some(Exit::Data), "byte {place}");
        idx.write_all_at(&byte, place).unwrap();
    }
    assert!(at_start > 0 && when_used > 30, "{at_start} at the start, {when_used} when used");
}

#[test]
fn files_that_change_under_a_run_are_errors() {
    let dir = tempfile::tempdir().unwrap();
    let prefix = dir.path().join("c");
    write(&prefix, 258, &documents(258, 60));
    let given = || told(&prefix, 4).unwrap();
    let (never_read, read) = (given(), given());
    let mut ids = Vec::new();
    read.read(0, 10, 258, &mut ids).unwrap();
    let bin = File::options().write(true).open(with_ending(&prefix, ".bin")).unwrap();
    bin.set_len(8).unwrap();
    let e = read.read(0, 10, 258, &mut ids).unwrap_err();
    assert!(e.exit == Exit::Data && e.fact.contains("c.bin has fewer than"), "{e}");
    let e = never_read.read(0, 10, 258, &mut ids).unwrap_err();
    assert!(e.exit == Exit::Data && e.fact.contains("c.bin has 8 bytes, it had"), "{e}");
    std::fs::remove_file(with_ending(&prefix, ".idx")).unwrap();
    assert!(never_read.document_starts(0..10).unwrap_err().fact.contains("c.idx: no such file"));
}
