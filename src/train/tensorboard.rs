//! TensorBoard event files: TFRecords (length, masked CRC32C, data, masked CRC32C; little-endian) of `Event` messages,
//! protobuf encoded by hand because four message types are all there is (tensorflow/core/util/event.proto,
//! tensorflow/core/framework/summary.proto).

use crate::appended::is_at;
use crate::error::{Error, Exit, Result};
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

/// One event file, appended to a record at a time.
pub struct EventFile {
    file: File,
    path: PathBuf,
}

impl EventFile {
    /// A new file in `dir`, which is created if absent. After a restore, `restored` > 0 tells TensorBoard to forget what
    /// earlier files say about later steps.
    ///
    /// # Errors
    /// [`Exit::Storage`].
    pub fn create(dir: &Path, restored: u64) -> Result<EventFile> {
        fs::create_dir_all(dir).map_err(|e| Error::io(dir, "create", &e, Exit::Storage))?;
        let pid = std::process::id();
        let (file, path) = (0..)
            .map(|n| dir.join(format!("events.out.tfevents.{}.{pid}.{n}.herd", seconds() as u64)))
            .find(|p| !p.exists())
            .map(|p| (OpenOptions::new().create_new(true).append(true).open(&p), p))
            .expect("an endless range");
        let file = file.map_err(|e| Error::io(&path, "create", &e, Exit::Storage))?;
        let mut events = EventFile { file, path };
        events.write(0, |e| bytes(e, 3, b"brain.Event:2"))?;
        if restored > 0 {
            // SessionLog { status: START }
            events.write(restored + 1, |e| bytes(e, 7, &[1 << 3, 1]))?;
        }
        Ok(events)
    }

    /// Adds `values` (tag, number) at `step`; TensorBoard keeps f32.
    ///
    /// # Errors
    /// [`Exit::Storage`].
    pub fn scalars(&mut self, step: u64, values: &[(impl AsRef<str>, f64)]) -> Result<()> {
        let mut summary = Vec::new();
        for (tag, x) in values {
            let mut value = Vec::new();
            bytes(&mut value, 1, tag.as_ref().as_bytes());
            value.push(2 << 3 | FIXED32);
            value.extend((*x as f32).to_le_bytes());
            bytes(&mut summary, 1, &value);
        }
        self.write(step, |e| bytes(e, 5, &summary))
    }

    /// One record: an Event of now at `step` with the field that `body` adds.
    fn write(&mut self, step: u64, body: impl FnOnce(&mut Vec<u8>)) -> Result<()> {
        let mut event = vec![1 << 3 | FIXED64];
        event.extend(seconds().to_le_bytes());
        event.push(2 << 3 | VARINT);
        varint(&mut event, step);
        body(&mut event);
        let record = record(&event);
        self.follow()?;
        self.file.write_all(&record).map_err(|e| Error::io(&self.path, "write to", &e, Exit::Storage))
    }
}

impl EventFile {
    /// Begins a new file where this one was moved or removed.
    fn follow(&mut self) -> Result<()> {
        if is_at(&self.file, &self.path) {
            return Ok(());
        }
        let dir = self.path.parent().unwrap_or(Path::new(".")).to_path_buf();
        *self = EventFile::create(&dir, 0)?;
        tracing::warn!("TensorBoard's file in {} was moved or removed: what comes now is in a new one", dir.display());
        Ok(())
    }
}

const VARINT: u8 = 0;
const FIXED64: u8 = 1;
const LENGTH: u8 = 2;
const FIXED32: u8 = 5;

fn varint(out: &mut Vec<u8>, mut x: u64) {
    while x >= 0x80 {
        out.push(x as u8 | 0x80);
        x >>= 7;
    }
    out.push(x as u8);
}

/// A length-delimited field.
fn bytes(out: &mut Vec<u8>, field: u8, data: &[u8]) {
    out.push(field << 3 | LENGTH);
    varint(out, data.len() as u64);
    out.extend(data);
}

fn record(data: &[u8]) -> Vec<u8> {
    let length = (data.len() as u64).to_le_bytes();
    let mut out = length.to_vec();
    out.extend(masked(crc32c::crc32c(&length)).to_le_bytes());
    out.extend(data);
    out.extend(masked(crc32c::crc32c(data)).to_le_bytes());
    out
}

/// TFRecord's guard against a checksum of data that holds checksums.
fn masked(crc: u32) -> u32 {
    crc.rotate_right(15).wrapping_add(0xa282_ead8)
}

/// Seconds since 1970.
fn seconds() -> f64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0.0, |d| d.as_secs_f64())
}
