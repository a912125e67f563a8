//! What the ranks of `herd batch` must agree on or hear from the first before they begin.

use super::Args;
use crate::data::Tokenizer;
use crate::error::{Error, Exit, Result};
use crate::serve::start::{cache_blocks, Holding};
use crate::world::{Op, World};
use serde::{Deserialize, Serialize};

/// Blocks of the cache: as many as the rank with the least memory can have.
pub fn same_blocks(args: &Args, world: &World, holding: &Holding) -> Result<usize> {
    let bytes = match args.cache_gb {
        Some(gb) if gb > 0.0 && gb.is_finite() => (gb * 1e9) as u64,
        Some(gb) => {
            let e = Error::new(Exit::Usage, format!("--cache-gb is {gb}, must be above 0"));
            return Err(Error { agreed: true, ..e });
        }
        None => free_memory() / 4 / world.local_size() as u64,
    };
    let own = world.agree(cache_blocks(holding.longest, args.max_sequences, holding.block_bytes(), bytes))?;
    Ok(-world.all_reduce_f64(&[-(own as f64)], Op::Max)?[0] as usize)
}

/// Bytes of this host that can be had (proc(5), MemAvailable); where it does not say, 4 GB are taken.
fn free_memory() -> u64 {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let line = text.lines().find_map(|l| l.strip_prefix("MemAvailable:")).unwrap_or_default();
    line.split_whitespace().next().and_then(|kb| kb.parse::<u64>().ok()).map_or(4 << 30, |kb| kb << 10)
}

/// The first rank's tokenizer for the leaders of the other replicas: its files come by message, not from shared storage.
pub fn tokenizer_of_leaders(world: &World, leads: bool, own: Option<&Tokenizer>) -> Result<Option<Tokenizer>> {
    let files = own.map(|t| if t.kind() == "bytes" { vec![] } else { t.files() });
    let packed = files.map_or(Ok(vec![]), |files| to_json(&files))?;
    let packed = world.broadcast_bytes(packed, 0)?;
    let open = || -> Result<Tokenizer> {
        let files: Vec<(String, Vec<u8>)> = of_json(&packed)?;
        if files.is_empty() {
            return Tokenizer::open("bytes");
        }
        let dir = std::env::temp_dir().join(format!("herd-tokenizer-{}-{}", std::process::id(), world.rank()));
        let write = || -> std::io::Result<()> {
            std::fs::create_dir_all(&dir)?;
            files.iter().try_for_each(|(name, content)| std::fs::write(dir.join(name), content))
        };
        let written = write().map_err(|e| Error::io(&dir, "write the tokenizer to", &e, Exit::Storage));
        let opened = written.and_then(|()| Tokenizer::open(&dir.to_string_lossy()));
        let _ = std::fs::remove_dir_all(&dir);
        opened
    };
    world.agree((leads && own.is_none()).then(open).transpose())
}

pub fn to_json<T: Serialize>(value: &T) -> Result<Vec<u8>> {
    serde_json::to_vec(value).map_err(|e| Error::new(Exit::Internal, e.to_string()))
}

pub fn of_json<T: for<'a> Deserialize<'a>>(bytes: &[u8]) -> Result<T> {
    serde_json::from_slice(bytes).map_err(|e| Error::new(Exit::Internal, format!("a message of the first rank: {e}")))
}
