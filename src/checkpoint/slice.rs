//! Arithmetic of slices: which elements of one slice are elements of another.
//!
//! A slice has two levels: a rectangle (`offset`, `extent`) of a global tensor, and a flat range of that rectangle in
//! row-major order. Tensor and pipeline axes cut rectangles, the data axis cuts flat ranges.

use super::meta::Piece;
use serde::{Deserialize, Serialize};

/// Elements `[start, start + len)`, in row-major order of the rectangle (`offset`, `extent`), of a tensor of `shape`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Slice {
    /// Global shape of the tensor, at least one dim.
    pub shape: Vec<usize>,
    /// Global index of the rectangle's first element, on each dim.
    pub offset: Vec<usize>,
    /// Elements of the rectangle, on each dim.
    pub extent: Vec<usize>,
    /// First element of the flat range, counted from 0 in the rectangle.
    pub start: usize,
    /// Elements of the flat range.
    pub len: usize,
}

/// `len` elements that are contiguous in both slices.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    /// Position in the slice that is read from, counted from its first element.
    pub from: usize,
    /// Position in the slice that is filled, counted from its first element.
    pub to: usize,
    /// Elements, at least 1.
    pub len: usize,
}

impl Slice {
    /// A tensor as a whole.
    pub fn whole(shape: &[usize]) -> Slice {
        Slice {
            shape: shape.to_vec(),
            offset: vec![0; shape.len()],
            extent: shape.to_vec(),
            start: 0,
            len: shape.iter().product(),
        }
    }

    /// The elements of `piece`, without their values.
    pub fn of(piece: &Piece) -> Slice {
        Slice {
            shape: piece.shape.to_vec(),
            offset: piece.offset.to_vec(),
            extent: piece.extent.to_vec(),
            start: piece.start,
            len: piece.data.len(),
        }
    }

    /// What is wrong with it, if anything: every other function here relies on `None`.
    pub fn fault(&self) -> Option<String> {
        let n = self.shape.len();
        if n == 0 || self.offset.len() != n || self.extent.len() != n {
            return Some(format!(
                "shape {:?}, offset {:?}, extent {:?} differ in length",
                self.shape, self.offset, self.extent
            ));
        }
        let fits = (0..n).all(|d| self.offset[d].checked_add(self.extent[d]).is_some_and(|end| end <= self.shape[d]));
        if !fits {
            return Some(format!("offset {:?} + extent {:?} passes shape {:?}", self.offset, self.extent, self.shape));
        }
        let Some(size) = product(&self.extent) else {
            return Some(format!("extent {:?} is too large", self.extent));
        };
        if self.start.checked_add(self.len).is_none_or(|end| end > size) {
            return Some(format!("elements {} + {} pass the {size} of extent {:?}", self.start, self.len, self.extent));
        }
        product(&self.shape).is_none().then(|| format!("shape {:?} is too large", self.shape))
    }

    /// Smallest and largest global index + 1 on each dim that an element can have.
    fn bounds(&self) -> Vec<(usize, usize)> {
        let mut b: Vec<_> = self.offset.iter().zip(&self.extent).map(|(&o, &e)| (o, o + e)).collect();
        let plane: usize = self.extent[1..].iter().product();
        // The flat range leaves only some of the outermost indices: a large tensor cut a thousand ways stays cheap.
        b[0] = (self.offset[0] + self.start / plane, self.offset[0] + (self.start + self.len).div_ceil(plane));
        b
    }

    /// Position in the rectangle of the element with the global index (`lead`, `last`).
    fn flat(&self, lead: &[usize], last: usize) -> usize {
        let row = lead.iter().enumerate().fold(0, |acc, (d, &i)| acc * self.extent[d] + (i - self.offset[d]));
        let d = self.shape.len() - 1;
        row * self.extent[d] + (last - self.offset[d])
    }
}

/// The elements of `want` that `have` holds, as runs in order of `want`. Both are slices of one tensor.
pub fn runs(have: &Slice, want: &Slice) -> Vec<Run> {
    let mut out: Vec<Run> = Vec::new();
    if have.len == 0 || want.len == 0 {
        return out;
    }
    let common: Vec<(usize, usize)> =
        have.bounds().into_iter().zip(want.bounds()).map(|(a, b)| (a.0.max(b.0), a.1.min(b.1))).collect();
    if common.iter().any(|(lo, hi)| lo >= hi) {
        return out;
    }
    let (lead_bounds, (first, end)) = (&common[..common.len() - 1], common[common.len() - 1]);
    let mut lead: Vec<usize> = lead_bounds.iter().map(|b| b.0).collect();
    loop {
        let (h, w) = (have.flat(&lead, first), want.flat(&lead, first));
        // How many of the row's elements come before each flat range, and how many lie before its end.
        let skip = have.start.saturating_sub(h).max(want.start.saturating_sub(w));
        let stop =
            (end - first).min((have.start + have.len).saturating_sub(h)).min((want.start + want.len).saturating_sub(w));
        if skip < stop {
            let run = Run { from: h + skip - have.start, to: w + skip - want.start, len: stop - skip };
            match out.last_mut() {
                Some(last) if last.from + last.len == run.from && last.to + last.len == run.to => last.len += run.len,
                _ => out.push(run),
            }
        }
        if !next(&mut lead, lead_bounds) {
            return out;
        }
    }
}

/// Counts `index` up within `bounds`, last dim fastest; false after the last.
fn next(index: &mut [usize], bounds: &[(usize, usize)]) -> bool {
    for d in (0..index.len()).rev() {
        index[d] += 1;
        if index[d] < bounds[d].1 {
            return true;
        }
        index[d] = bounds[d].0;
    }
    false
}

fn product(dims: &[usize]) -> Option<usize> {
    dims.iter().try_fold(1usize, |n, &d| n.checked_mul(d)).filter(|&n| n <= isize::MAX as usize / 4)
}

/// Up to this many elements between two runs are read along rather than skipped: rows of a narrow slice lie apart.
const SKIP: usize = 16 << 10;
/// Most elements read at once to pick several runs from.
const BLOCK: usize = 1 << 20;

/// Copies `runs` (in order, as [`runs`] returns them) to `out`; `read` fills a slice with the elements from a position of
/// the source on. Long runs go straight to their place, short ones that lie close together are read in one go.
pub fn copy_runs<E>(
    runs: &[Run], out: &mut [f32], mut read: impl FnMut(usize, &mut [f32]) -> Result<(), E>,
) -> Result<(), E> {
    let mut buffer: Vec<f32> = Vec::new();
    let mut rest = runs;
    while let Some(first) = rest.first() {
        let mut n = 1;
        while rest.get(n).is_some_and(|r| {
            let before = rest[n - 1];
            r.from - (before.from + before.len) <= SKIP && r.from + r.len - first.from <= BLOCK
        }) {
            n += 1;
        }
        if n == 1 {
            read(first.from, &mut out[first.to..first.to + first.len])?;
        } else {
            let last = rest[n - 1];
            buffer.resize(last.from + last.len - first.from, 0.0);
            read(first.from, &mut buffer)?;
            for r in &rest[..n] {
                let from = r.from - first.from;
                out[r.to..r.to + r.len].copy_from_slice(&buffer[from..from + r.len]);
            }
        }
        rest = &rest[n..];
    }
    Ok(())
}

/// Whether the ranges, in any order, cover `0..len` together.
pub fn cover(mut ranges: Vec<(usize, usize)>, len: usize) -> bool {
    ranges.sort_unstable();
    let mut at = 0;
    for (from, to) in ranges {
        if from > at {
            return false;
        }
        at = at.max(to);
    }
    at >= len
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkpoint::tests::random;

    fn span(shape: &[usize], offset: &[usize], extent: &[usize], start: usize, len: usize) -> Slice {
        Slice { shape: shape.to_vec(), offset: offset.to_vec(), extent: extent.to_vec(), start, len }
    }

    /// Global flat indices of a span's elements, the slow way.
    fn elements(s: &Slice) -> Vec<usize> {
        let n = s.shape.len();
        let mut all = Vec::new();
        let bounds: Vec<_> = s.offset.iter().zip(&s.extent).map(|(&o, &e)| (o, o + e)).collect();
        let mut index = s.offset.clone();
        if s.extent.contains(&0) {
            return all;
        }
        loop {
            all.push((0..n).fold(0, |acc, d| acc * s.shape[d] + index[d]));
            if !next(&mut index, &bounds) {
                break;
            }
        }
        all[s.start..s.start + s.len].to_vec()
    }

    #[test]
    fn runs_name_exactly_the_common_elements_of_any_two_slices() {
        let mut seed = 7;
        let mut hits = 0;
        for _ in 0..4_000 {
            let n = 1 + random(&mut seed, 3);
            let shape: Vec<usize> = (0..n).map(|_| 1 + random(&mut seed, 9)).collect();
            let mut any = || {
                // Half of all numbers are the widest possible: slices that have much in common.
                let half = |seed: &mut u64| random(seed, 2) == 0;
                let offset: Vec<usize> =
                    shape.iter().map(|&s| if half(&mut seed) { 0 } else { random(&mut seed, s) }).collect();
                let mut extent: Vec<usize> = shape.iter().zip(&offset).map(|(&s, &o)| s - o).collect();
                extent.iter_mut().for_each(|e| *e = if half(&mut seed) { *e } else { 1 + random(&mut seed, *e) });
                let size: usize = extent.iter().product();
                let start = if half(&mut seed) { 0 } else { random(&mut seed, size) };
                let len = if half(&mut seed) { size - start } else { random(&mut seed, size - start + 1) };
                let s = span(&shape, &offset, &extent, start, len);
                assert_eq!(s.fault(), None);
                s
            };
            let (have, want) = (any(), any());
            let (h, w) = (elements(&have), elements(&want));
            let mut got: Vec<Option<usize>> = vec![None; want.len];
            for r in runs(&have, &want) {
                for i in 0..r.len {
                    assert!(got[r.to + i].replace(h[r.from + i]).is_none(), "an element came twice");
                }
            }
            for (i, g) in got.iter().enumerate() {
                assert_eq!(*g, h.contains(&w[i]).then_some(w[i]), "{have:?} {want:?}");
                hits += g.is_some() as usize;
            }
        }
        assert!(hits > 5_000, "{hits} common elements are no test");
    }

    #[test]
    fn whole_rows_make_one_run() {
        let have = span(&[8, 4], &[0, 0], &[8, 4], 8, 16);
        assert_eq!(runs(&have, &Slice::whole(&[8, 4])), vec![Run { from: 0, to: 8, len: 16 }]);
    }

    #[test]
    fn faults_are_named() {
        assert!(span(&[4], &[2], &[3], 0, 1).fault().is_some_and(|f| f.contains("passes shape [4]")));
        assert!(span(&[4], &[0], &[4], 2, 3).fault().is_some());
        assert!(span(&[], &[], &[], 0, 0).fault().is_some());
        assert!(span(&[usize::MAX, 2], &[0, 0], &[usize::MAX, 2], 0, 1).fault().is_some());
        assert!(span(&[4], &[usize::MAX], &[2], 0, 1).fault().is_some());
    }

    #[test]
    fn gaps_are_seen() {
        assert!(cover(vec![(4, 9), (0, 4)], 9));
        assert!(cover(vec![(0, 6), (2, 4), (5, 9)], 9));
        assert!(!cover(vec![(0, 3), (4, 9)], 9));
        assert!(!cover(vec![(0, 8)], 9));
    }
}
