//! A file's content by little of it: two files of one size whose beginning, end and pieces between are the same count as the same.
//! A program or library also has its linker's digest of the whole (the build id) in its beginning.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use xxhash_rust::xxh3::Xxh3;

/// Files up to this size are read whole.
const WHOLE: u64 = 4 << 20;
const PIECE: usize = 16 << 10;
/// Pieces of a larger one, evenly spread from its first byte to its last: 1 MiB in all.
const PIECES: u64 = 64;

/// Sixteen hexadecimal digits.
///
/// # Errors
/// The system's.
pub fn of(path: &Path) -> io::Result<String> {
    let file = File::open(path)?;
    let size = file.metadata()?.len();
    let mut hash = Xxh3::new();
    hash.update(&size.to_le_bytes());
    let mut buffer = vec![0u8; PIECE];
    let last = size.saturating_sub(PIECE as u64);
    let count = if size <= WHOLE { size.div_ceil(PIECE as u64) } else { PIECES };
    for i in 0..count {
        let at = if size <= WHOLE {
            i * PIECE as u64
        } else {
            last / (PIECES - 1) * i + if i == PIECES - 1 { last % (PIECES - 1) } else { 0 }
        };
        let n = PIECE.min((size - at) as usize);
        file.read_exact_at(&mut buffer[..n], at)?;
        hash.update(&buffer[..n]);
    }
    Ok(format!("{:016x}", hash.digest()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn size_beginning_end_and_any_byte_of_a_small_file_count() {
        let dir = tempfile::tempdir().unwrap();
        let print = |bytes: &[u8]| {
            let path = dir.path().join("f");
            std::fs::write(&path, bytes).unwrap();
            of(&path).unwrap()
        };
        let small = vec![7u8; 100_000];
        let mut other = small.clone();
        other[50_000] = 8;
        assert_eq!(print(&small), print(&small));
        assert_ne!(print(&small), print(&other));
        assert_ne!(print(&small), print(&small[1..]));
        let large = vec![0u8; (WHOLE + 12_345) as usize];
        for at in [0, large.len() - 1] {
            let mut other = large.clone();
            other[at] = 1;
            assert_ne!(print(&large), print(&other), "{at}");
        }
        assert_eq!(print(b""), print(b""));
        assert!(of(&dir.path().join("none")).is_err());
    }
}
