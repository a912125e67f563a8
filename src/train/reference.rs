//! Log-probabilities of preference pairs under the reference model, computed once and kept on disk.
//!
//! They lie in a directory of their own, `ref-KEY` in `dpo.reference_dir` (default: `reference` in the run directory). The key is a
//! hash of what they depend on: the reference's weights and shape, its precision, the corpora with their masks, how samples are cut. So the
//! directory of another model or corpus is never taken for this one's, and runs that begin alike find the same. A file a corpus,
//! `train-0.f64`: of each pair two little-endian f64, the summed log-probabilities of the chosen and the rejected answer; NaN where
//! the pair is in no sample. `reference.json` says what was hashed. The directory appears whole, by a rename.

use crate::checkpoint::disk::remove_dir;
use crate::checkpoint::ReferenceNote;
use crate::data::identity::DataNote;
use crate::data::PairId;
use crate::durable::{refused, sync_dir, write_synced};
use crate::error::{Error, Exit, Result};
use crate::lazy_file::LazyFile;
use crate::plan::Plan;
use crate::run_dir::RunDir;
use crate::world::World;
use serde::{Deserialize, Serialize};
use serde_json::{json, Value};
use std::path::{Path, PathBuf};
use xxhash_rust::xxh3::{xxh3_128, xxh3_64};

const ABOUT: &str = "reference.json";
/// Bytes of a pair.
const PAIR: usize = 16;

/// Which of a run's lists of corpora.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum List {
    Train,
    Validation,
}

impl List {
    pub const ALL: [List; 2] = [List::Train, List::Validation];

    fn name(self) -> &'static str {
        match self {
            List::Train => "train",
            List::Validation => "validation",
        }
    }
}

/// The reference of a run: its log-probabilities, read as they are needed.
#[derive(Serialize, Deserialize)]
pub struct Reference {
    /// A file a corpus, of the two lists.
    files: [Vec<LazyFile>; 2],
}

impl Reference {
    /// Log-probabilities of the chosen and the rejected answer of a pair.
    ///
    /// # Errors
    /// [`Exit::Data`]: the file is not what it was, or has none for this pair.
    pub fn of(&self, list: List, id: PairId) -> Result<[f64; 2]> {
        let file = self.files[list as usize].get(id.corpus);
        let file = file.ok_or_else(|| Error::new(Exit::Internal, format!("no reference of corpus {}", id.corpus)))?;
        let mut bytes = [0; PAIR];
        file.read(id.number * PAIR as u64, &mut bytes)?;
        let [chosen, rejected] = [0, 8].map(|at| f64::from_le_bytes(std::array::from_fn(|i| bytes[at + i])));
        match chosen.is_finite() && rejected.is_finite() {
            true => Ok([chosen, rejected]),
            false => Err(Error::new(
                Exit::Data,
                format!("{} has {chosen}, {rejected} for pair {}", file.path.display(), id.number),
            )
            .hint("remove its directory: the reference is then computed again")),
        }
    }
}

/// What the log-probabilities of a run depend on, and where they lie.
pub struct ReferencePlace {
    dir: PathBuf,
    about: Value,
}

impl ReferencePlace {
    /// Of the weights whose checksum is `sum`.
    pub fn of(plan: &Plan, data: &DataNote, sum: &str) -> ReferencePlace {
        let config = &plan.config;
        let root = config.dpo.as_ref().and_then(|d| d.reference_dir.clone());
        let root = root.unwrap_or_else(|| RunDir::new(&config.run_dir).reference());
        let of = |list: &[crate::data::identity::CorpusNote]| -> Vec<Value> {
            list.iter().map(|c| json!({"content": c.content, "tokens": c.tokens, "pairs": c.documents / 2})).collect()
        };
        // As a text, since a number read back may be another by its last bit.
        let shape = serde_json::to_string(&plan.model).unwrap_or_default();
        let mut key = json!({
            "format": "herd-reference", "version": 1, "weights": sum, "shape": shape, "precision": config.train.precision,
            "sequence_length": config.data.sequence_length, "train": of(&data.train), "validation": of(&data.validation),
        });
        if let Some(format) = config.quantize() {
            key["quantize"] = json!(format);
        }
        let dir = root.join(format!("ref-{:016x}", xxh3_64(key.to_string().as_bytes())));
        ReferencePlace { dir, about: json!({ "of": key, "model": config.model.weights, "files": {} }) }
    }

    pub fn dir(&self) -> &Path {
        &self.dir
    }

    fn file(dir: &Path, list: List, corpus: usize) -> PathBuf {
        dir.join(format!("{}-{corpus}.f64", list.name()))
    }

    /// Pairs of each corpus of a list.
    fn pairs(&self, list: List) -> Vec<u64> {
        let all = self.about["of"][list.name()].as_array().map(Vec::as_slice).unwrap_or_default();
        all.iter().map(|c| c["pairs"].as_u64().unwrap_or(0)).collect()
    }

    /// What is there, looked at by rank 0: every file with its checksum. `None`: there is nothing, or it is damaged, which is said.
    /// Collective.
    pub fn find(&self, world: &World) -> Result<Option<Reference>> {
        world.from_first(|| {
            let Ok(text) = std::fs::read(self.dir.join(ABOUT)) else { return Ok(None) };
            match self.check(&text) {
                Ok(found) => Ok(Some(found)),
                Err(e) => {
                    tracing::warn!("{}: {}; it is computed again", self.dir.display(), e.fact);
                    Ok(None)
                }
            }
        })
    }

    fn check(&self, about: &[u8]) -> Result<Reference> {
        let wrong = |fact: String| Error::new(Exit::Data, fact);
        let about: Value = serde_json::from_slice(about).map_err(|e| wrong(format!("{ABOUT} is damaged: {e}")))?;
        if about["of"] != self.about["of"] {
            return Err(wrong(format!("{ABOUT} is of another model or other corpora")));
        }
        let open = |list: List| -> Result<Vec<LazyFile>> {
            let one = |(c, pairs): (usize, &u64)| {
                let path = ReferencePlace::file(&self.dir, list, c);
                let bytes = std::fs::read(&path).map_err(|e| Error::io(&path, "read", &e, Exit::Data))?;
                let sum = format!("{:032x}", xxh3_128(&bytes));
                let said = &about["files"][name(&path)];
                if bytes.len() as u64 != pairs * PAIR as u64 || *said != json!(sum) {
                    return Err(wrong(format!("{} has checksum {sum}, not {said}", path.display())));
                }
                Ok(LazyFile::given(path, bytes.len() as u64, Exit::Data))
            };
            self.pairs(list).iter().enumerate().map(one).collect()
        };
        Ok(Reference { files: [open(List::Train)?, open(List::Validation)?] })
    }

    /// Writes `values` (of each list, corpus and pair) and puts the directory in its place.
    pub fn write(&self, values: &[Vec<Vec<[f64; 2]>>; 2]) -> Result<()> {
        let root = self.dir.parent().unwrap_or(Path::new("."));
        std::fs::create_dir_all(root).map_err(refused(root, "create"))?;
        // Another run may be writing the same.
        let new = root.join(format!(".{}-{}-{}", name(&self.dir), crate::attempt::current(), std::process::id()));
        remove_dir(&new)?;
        std::fs::create_dir(&new).map_err(refused(&new, "create"))?;
        let mut about = self.about.clone();
        for list in List::ALL {
            for (c, pairs) in values[list as usize].iter().enumerate() {
                let bytes: Vec<u8> = pairs.iter().flatten().flat_map(|v| v.to_le_bytes()).collect();
                let path = ReferencePlace::file(&new, list, c);
                write_synced(&path, &bytes)?;
                about["files"][name(&path)] = format!("{:032x}", xxh3_128(&bytes)).into();
            }
        }
        write_synced(&new.join(ABOUT), format!("{about:#}\n").as_bytes())?;
        sync_dir(&new)?;
        // What lies there is damaged, or the same.
        remove_dir(&self.dir)?;
        std::fs::rename(&new, &self.dir).map_err(refused(&self.dir, "write"))?;
        sync_dir(root)
    }

    /// For the checkpoints of the run.
    pub fn note(&self) -> ReferenceNote {
        let sum = self.about["of"]["weights"].as_str().unwrap_or_default().to_string();
        ReferenceNote { sum }
    }
}

fn name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}
