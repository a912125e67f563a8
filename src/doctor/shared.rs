//! A directory that all hosts should see as one: each writes a file there and reads those of others.

use super::facts::PlaceFacts;
use super::look::space;
use crate::text::short_reason;
use std::fs::File;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::time::Instant;
use xxhash_rust::xxh3::xxh3_64;

/// Bytes of a host's file.
const SIZE: usize = 4 << 20;

/// A directory as this host finds it, before anything is written.
pub fn look(path: &Path) -> PlaceFacts {
    let there = space::nearest(path);
    PlaceFacts {
        path: path.display().to_string(),
        there: there.display().to_string(),
        space: space::of(&there).ok(),
        ..PlaceFacts::default()
    }
}

/// The file of host `index` in one examination. It goes when this goes.
pub struct Token {
    path: PathBuf,
}

fn name(dir: &Path, nonce: u64, index: usize) -> PathBuf {
    dir.join(format!(".herd-doctor-{nonce:016x}-{index}"))
}

/// What the file holds: another content for every host and examination.
fn content(nonce: u64, index: usize) -> Vec<u8> {
    let seed = xxh3_64(&[nonce.to_le_bytes(), (index as u64).to_le_bytes()].concat());
    (0..SIZE as u64 / 8).flat_map(|i| seed.wrapping_add(i).wrapping_mul(0x9E37_79B9_7F4A_7C15).to_le_bytes()).collect()
}

impl Token {
    /// Writes it to `dir`, and says how fast in bytes a second, its way to the disks included; or what the filesystem said.
    pub fn write(dir: &Path, nonce: u64, index: usize) -> (Token, Result<f64, String>) {
        let token = Token { path: name(dir, nonce, index) };
        let bytes = content(nonce, index);
        let began = Instant::now();
        let write = || -> std::io::Result<()> {
            // a directory that is not there is told as that, and not made
            let mut file = File::create(&token.path)?;
            file.write_all(&bytes)?;
            file.sync_all()
        };
        let written = write().map(|()| SIZE as f64 / began.elapsed().as_secs_f64()).map_err(|e| short_reason(&e));
        (token, written)
    }
}

impl Drop for Token {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

/// The file of host `index`, read whole: how fast in bytes a second, or why not.
pub fn read(dir: &Path, nonce: u64, index: usize) -> Result<f64, String> {
    let began = Instant::now();
    let mut bytes = Vec::with_capacity(SIZE);
    File::open(name(dir, nonce, index)).and_then(|mut f| f.read_to_end(&mut bytes)).map_err(|e| short_reason(&e))?;
    let speed = bytes.len() as f64 / began.elapsed().as_secs_f64();
    match bytes == content(nonce, index) {
        true => Ok(speed),
        false => Err(format!("{} bytes that are not what was written", bytes.len())),
    }
}

/// Whose files host `me` of `n` reads: those at distances 1, 2, 4, …: few, and all hosts hang together by them.
pub fn others(me: usize, n: usize) -> impl Iterator<Item = usize> {
    let distances = std::iter::successors(Some(1), |d| Some(d * 2)).take_while(move |&d| d < n);
    distances.map(move |d| (me + d) % n)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_written_is_seen_and_goes() {
        let dir = tempfile::tempdir().unwrap();
        let (token, written) = Token::write(dir.path(), 7, 0);
        assert!(written.unwrap() > 0.0 && read(dir.path(), 7, 0).unwrap() > 0.0);
        assert_eq!(read(dir.path(), 7, 1).unwrap_err(), "no such file or directory");
        std::fs::write(&token.path, b"other").unwrap();
        assert_eq!(read(dir.path(), 7, 0).unwrap_err(), "5 bytes that are not what was written");
        drop(token);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
        let (_token, refused) = Token::write(&dir.path().join("none"), 7, 0);
        assert_eq!(refused.unwrap_err(), "no such file or directory");
        assert_eq!(others(3, 6).collect::<Vec<_>>(), [4, 5, 1]);
        assert_eq!(others(0, 1).count(), 0);
    }
}
