//! A model of which a run has trained a part: tensors that a checkpoint has in the place of its base's, or low-rank adapters that are
//! added to its base's matrices in fp32 as they are read: `W + s·B·A`. What is written of it is rounded once.

use super::Weights;
use crate::checkpoint::base::BaseSum;
use crate::checkpoint::BaseNote;
use crate::config::{BlockFormat, LoraSection, LoraTarget};
use crate::convert::peft::AdapterFiles;
use crate::error::{Error, Exit, Result};
use crate::kernels::blockwise;
use crate::layout::{adapter_shapes, Kind, Param};
use crate::threads::lock;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

/// Elements read at a time.
const BLOCK: usize = 1 << 20;

pub(super) struct Adapted {
    pub base: Weights,
    pub over: Over,
    lora: Option<LoraSection>,
    /// Where the base lies, and its checksum where that is known.
    place: PathBuf,
    sum: Option<String>,
    /// The matrix that was read last: pieces of one come one after the other.
    last: Mutex<Option<Arc<Factors>>>,
}

/// What was trained.
pub(super) enum Over {
    Stored(Box<Weights>),
    Peft(Box<AdapterFiles>),
}

/// An adapter, whole.
struct Factors {
    matrix: String,
    /// [r,in] and [out,r].
    a: Vec<f32>,
    b: Vec<f32>,
    columns: usize,
}

impl Adapted {
    /// The tensors of a checkpoint over its base.
    pub fn of_note(over: Weights, base: Weights, note: &BaseNote) -> Result<Adapted> {
        let place = note.weights.clone();
        let all = Adapted {
            base,
            lora: note.lora.clone(),
            over: Over::Stored(Box::new(over)),
            place,
            sum: Some(note.sum.clone()),
            last: Mutex::default(),
        };
        let Some(lora) = &all.lora else { return Ok(all) };
        let model = all.base.model();
        for (name, shape) in (0..model.num_hidden_layers).flat_map(|i| adapter_shapes(model, lora, i)) {
            if all.over_shape(&name) != Some(&shape[..]) {
                return Err(Error::new(Exit::Model, format!("the checkpoint lacks {name} of shape {shape:?}")));
            }
        }
        Ok(all)
    }

    /// An adapter in PEFT's form over its base.
    pub fn of_peft(files: AdapterFiles, base: Weights, place: PathBuf) -> Result<Adapted> {
        files.complete(base.model())?;
        let lora = Some(files.lora().clone());
        Ok(Adapted { base, lora, over: Over::Peft(Box::new(files)), place, sum: None, last: Mutex::default() })
    }

    pub fn lora(&self) -> Option<(&LoraSection, &Path)> {
        self.lora.as_ref().map(|l| (l, self.place.as_path()))
    }

    pub fn shape(&self, name: &str) -> Option<&[usize]> {
        self.over_shape(name).or_else(|| self.base.shape(name))
    }

    fn over_shape(&self, name: &str) -> Option<&[usize]> {
        match &self.over {
            Over::Stored(w) => w.shape(name),
            Over::Peft(p) => p.shape(name),
        }
    }

    fn over_read(&self, name: &str, offset: &[usize], extent: &[usize], start: usize, out: &mut [f32]) -> Result<()> {
        match &self.over {
            Over::Stored(w) => w.read_range(name, offset, extent, start, out),
            Over::Peft(p) => p.read_range(name, offset, extent, start, out),
        }
    }

    pub fn read(&self, name: &str, offset: &[usize], extent: &[usize], start: usize, out: &mut [f32]) -> Result<()> {
        if self.over_shape(name).is_some() {
            return self.over_read(name, offset, extent, start, out);
        }
        match self.lora.as_ref().and_then(|l| l.quantize).filter(|_| in_block(name)) {
            Some(format) => self.read_rounded(format, name, offset, extent, start, out)?,
            None => self.base.read_range(name, offset, extent, start, out)?,
        }
        let (Some(lora), Some(factors)) = (&self.lora, self.factors(name)?) else { return Ok(()) };
        factors.add(lora, offset, extent, start, out);
        Ok(())
    }

    /// Elements of a matrix of the base as they lay beside the adapters: in fewer bits, so whole runs of its rows are read.
    fn read_rounded(
        &self, format: BlockFormat, name: &str, offset: &[usize], extent: &[usize], start: usize, out: &mut [f32],
    ) -> Result<()> {
        let (width, whole) = (extent[1], self.base.shape(name).map_or(0, |s| s[1]));
        let first = offset[1] / BlockFormat::RUN * BlockFormat::RUN;
        let columns = (offset[1] + width).next_multiple_of(BlockFormat::RUN).min(whole) - first;
        let (row, end) = (start / width, (start + out.len()).div_ceil(width));
        let mut values = vec![0.0; (end - row) * columns];
        self.base.read_range(name, &[offset[0] + row, first], &[end - row, columns], 0, &mut values)?;
        blockwise::rounded_(format, &mut values);
        for (i, v) in out.iter_mut().enumerate() {
            let (r, c) = ((start + i) / width - row, (start + i) % width);
            *v = values[r * columns + offset[1] - first + c];
        }
        Ok(())
    }

    /// The adapter of a matrix, if it has one.
    fn factors(&self, name: &str) -> Result<Option<Arc<Factors>>> {
        let side = |s: &str| name.strip_suffix(".weight").map(|m| format!("{m}.lora_{s}.weight")).unwrap_or_default();
        let (a, b) = (side("A"), side("B"));
        let (Some([r, columns]), Some([rows, _])) = (self.over_shape(&a), self.over_shape(&b)) else { return Ok(None) };
        let mut last = lock(&self.last);
        if let Some(f) = last.as_ref().filter(|f| f.matrix == name) {
            return Ok(Some(f.clone()));
        }
        let whole = |name: &str, shape: [usize; 2]| -> Result<Vec<f32>> {
            let mut out = vec![0.0; shape[0] * shape[1]];
            self.over_read(name, &[0, 0], &shape, 0, &mut out)?;
            Ok(out)
        };
        let (a, b) = (whole(&a, [*r, *columns])?, whole(&b, [*rows, *r])?);
        let factors = Arc::new(Factors { matrix: name.into(), a, b, columns: *columns });
        *last = Some(factors.clone());
        Ok(Some(factors))
    }

    /// Whether the base is the one beside which the checkpoint was trained: its frozen tensors are read once and added up.
    pub fn verify(&self) -> Result<()> {
        let Some(then) = &self.sum else { return Ok(()) };
        let mut sum = BaseSum::default();
        let mut values = Vec::new();
        let all = crate::layout::units(self.base.model()).into_iter().flat_map(|(_, params)| params);
        for (name, shape) in all.filter(|(name, _)| self.over_shape(name).is_none()) {
            let kind = if shape.len() == 2 { Kind::Matrix } else { Kind::Vector };
            let (offset, extent) = (vec![0; shape.len()], shape.clone());
            let p = Param { name, kind, shape, offset, extent, start: 0, copies: 1, owner: true };
            for start in (0..p.len()).step_by(BLOCK) {
                values.resize(BLOCK.min(p.len() - start), 0f32);
                self.base.read_range(&p.name, &p.offset, &p.extent, start, &mut values)?;
                sum.add(&p, start, &values);
            }
        }
        match sum.text() == *then {
            true => Ok(()),
            false => Err(Error::new(
                Exit::Model,
                format!(
                    "the weights in {} have the checksum {}, those that were trained on had {then}",
                    self.place.display(),
                    sum.text()
                ),
            )
            .hint("put the base model back where it was, as it was")),
        }
    }
}

/// Whether this is a matrix of a transformer block.
fn in_block(name: &str) -> bool {
    LoraTarget::ALL.iter().any(|t| name.ends_with(&format!(".{}.weight", t.name())))
}

impl Factors {
    /// Adds s·B·A, summed in fp32, to elements of the rectangle.
    fn add(&self, lora: &LoraSection, offset: &[usize], extent: &[usize], start: usize, out: &mut [f32]) {
        let ([top, left], [_, width]) = (offset, extent) else { return };
        let (scale, r) = (lora.scale() as f32, lora.rank);
        let mut delta = vec![0f32; *width];
        let (mut at, mut rest) = (start, out);
        while !rest.is_empty() {
            let (row, col) = (at / width, at % width);
            let run = rest.len().min(width - col);
            let delta = &mut delta[..run];
            delta.fill(0.0);
            for k in 0..r {
                let b = self.b[(top + row) * r + k];
                let a = &self.a[k * self.columns + left + col..][..run];
                delta.iter_mut().zip(a).for_each(|(d, a)| *d += b * a);
            }
            let (part, later) = rest.split_at_mut(run);
            part.iter_mut().zip(delta.iter()).for_each(|(w, d)| *w += scale * d);
            (at, rest) = (at + run, later);
        }
    }
}
