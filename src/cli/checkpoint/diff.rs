//! `herd checkpoint diff`: two checkpoints, tensor by tensor and key by key.

use super::places::say;
use crate::checkpoint::{Checkpoint, Group};
use crate::cli::progress::shown;
use crate::convert::weights::{self, Weights};
use crate::error::{Error, Exit, Result};
use crate::progress::Meter;
use serde_json::{json, Value};
use std::path::PathBuf;

/// Elements compared at a time.
const BLOCK: usize = 1 << 20;

/// Compare two checkpoints: every tensor, and what they say about their runs.
///
/// Ends with exit code 23 if any tensor differs (bit for bit, or by more than --tolerance). Differences in what they say
/// about their runs are printed, but count only with --meta. Weights alone are compared where one side has nothing else.
#[derive(clap::Args)]
#[command(
    after_help = "Examples:\n  herd checkpoint diff runs/a runs/b\n  herd checkpoint diff runs/a/checkpoints/step-00000100 runs/a/checkpoints/step-00000200\n  herd checkpoint diff runs/a hf/a --tolerance 1e-2"
)]
pub struct Args {
    /// A step directory, a run directory (its newest whole checkpoint), a Hugging Face or Meta directory.
    a: PathBuf,
    /// The other one.
    b: PathBuf,
    /// Largest absolute difference that does not count.
    #[arg(long, default_value_t = 0.0)]
    tolerance: f64,
    /// Differences in what they say about their runs count as well.
    #[arg(long)]
    meta: bool,
    /// One JSON object on stdout.
    #[arg(long)]
    json: bool,
}

/// How two tensors differ.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Difference {
    /// Elements whose bits differ.
    elements: usize,
    max_abs: f64,
    /// Largest |a - b| / max(|a|, |b|).
    max_rel: f64,
}

impl Difference {
    fn add(&mut self, a: &[f32], b: &[f32]) {
        for (x, y) in a.iter().zip(b).filter(|(x, y)| x.to_bits() != y.to_bits()) {
            self.elements += 1;
            let (x, y) = (f64::from(*x), f64::from(*y));
            // NaN against a number, and infinities, are as far apart as can be; NaN against NaN of other bits are not.
            let abs = if x.is_nan() && y.is_nan() {
                0.0
            } else {
                Some((x - y).abs()).filter(|d| !d.is_nan()).unwrap_or(f64::INFINITY)
            };
            let scale = x.abs().max(y.abs());
            self.max_abs = self.max_abs.max(abs);
            self.max_rel = self.max_rel.max(if abs == 0.0 {
                0.0
            } else if abs.is_infinite() {
                f64::INFINITY
            } else {
                abs / scale
            });
        }
    }
}

/// What came of all tensors.
#[derive(Default)]
struct Compared {
    rows: Vec<Value>,
    lines: String,
    compared: usize,
    different: usize,
}

pub fn run(args: &Args) -> Result<()> {
    let work = |meter: &Meter| -> Result<_> {
        let (a, b) = (weights::open_metered(&args.a, meter)?, weights::open_metered(&args.b, meter)?);
        Ok((tensors(&a, &b, args.tolerance, meter)?, meta_differences(&a, &b)))
    };
    let (Compared { rows, mut lines, compared, different }, meta) = shown(work)?;
    for (key, x, y) in &meta {
        lines += &format!("meta {key}: {x} and {y}\n");
    }
    let same = different == 0 && (meta.is_empty() || !args.meta);
    lines += &format!(
        "{different} of {compared} tensors differ{}\n",
        match meta.len() {
            0 => String::new(),
            n => format!(", {n} keys of the description"),
        }
    );
    let meta: Vec<Value> = meta.into_iter().map(|(key, a, b)| json!({ "key": key, "a": a, "b": b })).collect();
    let value = json!({ "same": same, "compared": compared, "different": different, "tensors": rows, "meta": meta });
    say(args.json, value, &lines)?;
    match same {
        true => Ok(()),
        false => Err(Error::new(Exit::Different, format!("{} and {} differ", args.a.display(), args.b.display()))),
    }
}

/// Every tensor of either, on both sides; `meter` counts what is read of both.
fn tensors(a: &Weights, b: &Weights, tolerance: f64, meter: &Meter) -> Result<Compared> {
    let Compared { mut rows, mut lines, mut compared, mut different } = Compared::default();
    let names = names(a, b);
    let both = names.iter().filter_map(|(g, n)| shape(a, *g, n).filter(|x| shape(b, *g, n).as_ref() == Some(x)));
    meter.begin("diff", both.map(|x| 8 * x.iter().product::<usize>() as u64).sum::<u64>());
    for (group, name) in names {
        let (x, y) = (shape(a, group, &name), shape(b, group, &name));
        let label = format!("{group} {name}");
        compared += 1;
        let (Some(x), Some(y)) = (x.clone(), y.clone()) else {
            let only = if x.is_some() { "A" } else { "B" };
            different += 1;
            lines += &format!("{label}: only in {only}\n");
            rows.push(json!({ "group": group, "name": name, "only": only }));
            continue;
        };
        if x != y {
            different += 1;
            lines += &format!("{label}: shape {x:?} and {y:?}\n");
            rows.push(json!({ "group": group, "name": name, "shapes": [x, y] }));
            continue;
        }
        let d = compare(a, b, group, &name, &x, meter)?;
        let counts = if tolerance > 0.0 { d.max_abs > tolerance } else { d.elements > 0 };
        different += counts as usize;
        if d.elements > 0 {
            let n: usize = x.iter().product();
            lines += &format!(
                "{label}: {} of {n} elements differ, by {:.3e} at most, relatively {:.3e}{}\n",
                d.elements,
                d.max_abs,
                d.max_rel,
                if counts { "" } else { " (within the tolerance)" }
            );
            let number = |x: f64| if x.is_finite() { json!(x) } else { json!(x.to_string()) };
            rows.push(json!({
                "group": group, "name": name, "elements": d.elements, "max_abs": number(d.max_abs),
                "max_rel": number(d.max_rel), "counts": counts,
            }));
        }
    }
    Ok(Compared { rows, lines, compared, different })
}

/// Every tensor of either; moments only where both sides are checkpoints, which may say zero by having none.
fn names(a: &Weights, b: &Weights) -> Vec<(Group, String)> {
    let both = a.checkpoint().is_some() && b.checkpoint().is_some();
    let mut all = Vec::new();
    for w in [a, b] {
        let shapes = crate::layout::units(w.model()).into_iter().flat_map(|(_, p)| p);
        all.extend(shapes.map(|(name, _)| (Group::Param, name)));
        let stored = w.checkpoint().filter(|_| both).into_iter().flat_map(Checkpoint::tensors);
        all.extend(stored.map(|(group, name, _)| (group, name.to_string())));
    }
    let mut seen = std::collections::HashSet::new();
    all.retain(|t| seen.insert(t.clone()));
    all
}

fn shape(w: &Weights, group: Group, name: &str) -> Option<Vec<usize>> {
    match group {
        Group::Param => w.shape(name).map(<[usize]>::to_vec),
        // A checkpoint without moments means zeros in the parameters' shapes.
        _ => w.checkpoint().filter(|c| !c.has(group)).and(w.shape(name)).map(<[usize]>::to_vec).or_else(|| {
            w.checkpoint()?.tensors().find(|(g, n, _)| *g == group && *n == name).map(|(_, _, s)| s.to_vec())
        }),
    }
}

fn compare(a: &Weights, b: &Weights, group: Group, name: &str, shape: &[usize], meter: &Meter) -> Result<Difference> {
    let (len, origin) = (shape.iter().product::<usize>(), vec![0; shape.len()]);
    let mut difference = Difference::default();
    let (mut x, mut y) = (vec![0.0; BLOCK.min(len)], vec![0.0; BLOCK.min(len)]);
    for start in (0..len).step_by(BLOCK) {
        let n = BLOCK.min(len - start);
        for (w, out) in [(a, &mut x[..n]), (b, &mut y[..n])] {
            match (group, w.checkpoint()) {
                // weights that a checkpoint has not are in its base
                (Group::Param, _) | (_, None) => w.read_range(name, &origin, shape, start, out)?,
                (_, Some(c)) => c.read(group, name, &origin, shape, start, out)?,
            }
        }
        difference.add(&x[..n], &y[..n]);
        meter.add(8 * n as u64);
    }
    Ok(difference)
}

/// Keys of the descriptions whose values differ; between a checkpoint and a bare model, only the model's.
fn meta_differences(a: &Weights, b: &Weights) -> Vec<(String, Value, Value)> {
    let describe = |w: &Weights| match (a.checkpoint(), b.checkpoint()) {
        (Some(_), Some(_)) => w.checkpoint().and_then(|c| serde_json::to_value(c.meta()).ok()).unwrap_or_default(),
        _ => json!({ "model": w.model() }),
    };
    let mut out = Vec::new();
    walk("", &describe(a), &describe(b), &mut out);
    out
}

fn walk(path: &str, a: &Value, b: &Value, out: &mut Vec<(String, Value, Value)>) {
    match (a, b) {
        (Value::Object(x), Value::Object(y)) => {
            let keys: std::collections::BTreeSet<&String> = x.keys().chain(y.keys()).collect();
            for key in keys {
                let below = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
                walk(&below, x.get(key).unwrap_or(&Value::Null), y.get(key).unwrap_or(&Value::Null), out);
            }
        }
        _ if a != b => out.push((path.into(), a.clone(), b.clone())),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn differences_are_of_bits_and_measured_in_values() {
        let mut d = Difference::default();
        d.add(&[1.0, 2.0, 0.0, f32::NAN], &[1.0, 2.5, -0.0, f32::NAN]);
        assert_eq!(d, Difference { elements: 2, max_abs: 0.5, max_rel: 0.2 });
        d.add(&[1.0], &[f32::NAN]);
        assert_eq!((d.max_abs, d.max_rel), (f64::INFINITY, f64::INFINITY));
    }
}
