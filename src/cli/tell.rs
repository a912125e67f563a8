//! What the ranks of `herd batch` and `herd serve` hear from the first before they begin.

use crate::data::Tokenizer;
use crate::error::{Error, Exit, Result};
use crate::world::World;
use serde::{Deserialize, Serialize};

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
