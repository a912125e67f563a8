//! Where the tokens of a micro-batch stand in their sequences, and what each may attend to.
//!
//! Over the context axis (c ranks; the Llama 3 paper, arXiv:2407.21783 §3.3.2) a sequence of S tokens is cut into 2·c chunks,
//! and rank r holds chunks r and 2·c−1−r, in this order: one that attends to little and one that attends to much, so that
//! all ranks have the same work. Documents packed into one sequence do not see each other.

use crate::kernels::PackedSequences;
use crate::model::Rope;
use std::cell::OnceCell;
use std::ops::Range;
use tch::Tensor;

/// For each sequence of a micro-batch the places where a new document begins, ascending, 0 left out. Attention does not
/// look back beyond them. Without a list every sequence is one document.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Documents {
    /// A list a sequence, in tokens from its beginning; none at all: every sequence is one document.
    pub starts: Vec<Vec<usize>>,
    /// Whether each document counts its positions from 0, as it would alone; else they run through the sequence.
    pub restart: bool,
}

impl Documents {
    /// Positions run through the sequences.
    pub fn through(starts: Vec<Vec<usize>>) -> Documents {
        Documents { starts, restart: false }
    }

    /// Every sequence is one document.
    pub fn whole() -> Documents {
        Documents::default()
    }
}

/// Queries of this rank that attend to the same keys, but for the causal end: query i of n sees the keys up to n−1−i
/// before the last.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Segment {
    /// The sequence of the micro-batch; None: all of them.
    pub sequence: Option<usize>,
    /// Places among this rank's tokens of the sequence.
    pub queries: Range<usize>,
    /// Places in the whole sequence; the queries' own are the last of them.
    pub keys: Range<usize>,
}

/// Positions of one micro-batch, the same for every block.
#[derive(Debug)]
pub struct Positions {
    /// Rotary tables of the tokens that this rank holds of each sequence; where positions start again, of all sequences one
    /// after the other.
    rope: Rope,
    /// Tokens that this rank holds of each sequence.
    len: usize,
    /// In order of their queries; together every query once.
    segments: Vec<Segment>,
    /// Tokens of a whole sequence.
    whole: usize,
    packed: OnceCell<PackedSequences>,
}

impl Positions {
    /// The `len` consecutive positions from `start` on of whole sequences on one rank, `rope` counting from 0. Attention is
    /// among these tokens.
    pub fn consecutive(rope: &Rope, start: usize, len: usize) -> Positions {
        Positions {
            rope: rope.slice(start, len),
            segments: vec![Segment { sequence: None, queries: 0..len, keys: 0..len }],
            len,
            whole: len,
            packed: OnceCell::new(),
        }
    }

    /// Rank `rank` of `size` on the context axis, of sequences of `len` tokens, a multiple of 2·`size` where there are
    /// several; `rope` counts from 0.
    pub fn new(rope: &Rope, len: usize, rank: usize, size: usize, documents: &Documents) -> Positions {
        let chunks = chunks(len, rank, size);
        let tables: Vec<Rope> = chunks.iter().map(|c| rope.slice(c.start, c.len())).collect();
        let join = |f: fn(&Rope) -> &Tensor| match &tables[..] {
            [one] => f(one).shallow_clone(),
            several => Tensor::cat(&several.iter().map(f).collect::<Vec<_>>(), 0),
        };
        let rope = match documents.restart {
            true => restarted(rope, &chunks, documents),
            false => Rope { cos: join(|r| &r.cos), sin: join(|r| &r.sin) },
        };
        let segments = match documents.starts.iter().all(|starts| starts.is_empty()) {
            true => segments(&chunks, None, &[0, len]),
            false => {
                let of = |(row, starts): (usize, &Vec<usize>)| {
                    let bounds = [&[0], &starts[..], &[len]].concat();
                    segments(&chunks, Some(row), &bounds)
                };
                documents.starts.iter().enumerate().flat_map(of).collect()
            }
        };
        let held = chunks.iter().map(|c| c.len()).sum();
        Positions { rope, segments, len: held, whole: len, packed: OnceCell::new() }
    }

    /// Tokens that this rank holds of each sequence: S/c.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether this rank holds no tokens.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// In order of their queries; together every query of this rank once.
    pub fn segments(&self) -> &[Segment] {
        &self.segments
    }

    /// The segments for a kernel that takes all of them in one call, of B sequences: keys are rows of [B·S,..]. `None` where a
    /// segment is of all sequences, which one call takes as it is.
    pub fn packed(&self, sequences: usize) -> Option<&PackedSequences> {
        let entry = |s: &Segment| {
            let first = s.sequence? * self.whole;
            Some((s.queries.len(), first + s.keys.start..first + s.keys.end))
        };
        let entries = self.segments.iter().map(entry).collect::<Option<Vec<_>>>()?;
        Some(self.packed.get_or_init(|| PackedSequences::new(&entries, sequences * self.whole, self.rope.cos.device())))
    }

    /// Turns the heads of x [B,S/c,heads,D] to their positions, in place; `inverse` turns them back.
    pub fn rotate_(&self, x: &Tensor, inverse: bool) {
        if self.rope.len() == self.len {
            return crate::kernels::rope_(x, &self.rope.cos, &self.rope.sin, inverse);
        }
        let size = x.size();
        let all = x.view([1, size[0] * size[1], size[2], size[3]]);
        crate::kernels::rope_(&all, &self.rope.cos, &self.rope.sin, inverse)
    }
}

/// Tables of the tokens in `chunks` of every sequence, one after the other, counted from the beginning of each document.
fn restarted(rope: &Rope, chunks: &[Range<usize>], documents: &Documents) -> Rope {
    let mut places = Vec::new();
    for starts in &documents.starts {
        let begin = |at: usize| starts[..starts.partition_point(|&s| s <= at)].last().copied().unwrap_or(0);
        places.extend(chunks.iter().cloned().flatten().map(|at| (at - begin(at)) as i64));
    }
    let places = Tensor::from_slice(&places).to_device(rope.cos.device());
    Rope { cos: rope.cos.index_select(0, &places), sin: rope.sin.index_select(0, &places) }
}

/// The places of a sequence of `len` tokens that rank `rank` of `size` on the context axis holds, in its order.
pub fn chunks(len: usize, rank: usize, size: usize) -> Vec<Range<usize>> {
    if size == 1 {
        return std::iter::once(0..len).collect();
    }
    let each = len / (2 * size);
    [rank, 2 * size - 1 - rank].map(|i| i * each..(i + 1) * each).to_vec()
}

/// Of x [B,S,..] the part that rank `rank` of `size` on the context axis holds: [B,S/c,..].
pub fn share(x: &Tensor, rank: usize, size: usize) -> Tensor {
    if size == 1 {
        return x.shallow_clone();
    }
    let part = |c: &Range<usize>| x.narrow(1, c.start as i64, c.len() as i64);
    Tensor::cat(&chunks(x.size()[1] as usize, rank, size).iter().map(part).collect::<Vec<_>>(), 1)
}

/// What every rank holds, in rank order [c,B,S/c,..] → whole sequences [B,S,..].
pub fn to_sequence(parts: &Tensor) -> Tensor {
    let size = parts.size();
    let (c, b, half) = (size[0], size[1], size[2] / 2);
    let halves = parts.view([&[c, b, 2, half], &size[3..]].concat().as_slice());
    let ordered = Tensor::cat(&[halves.select(2, 0), halves.select(2, 1).flip([0])], 0);
    ordered.transpose(0, 1).reshape([&[b, 2 * c * half], &size[3..]].concat().as_slice())
}

/// The inverse of [`to_sequence`] for `c` ranks, contiguous.
pub fn to_ranks(whole: &Tensor, c: i64) -> Tensor {
    let size = whole.size();
    let (b, half) = (size[0], size[1] / (2 * c));
    let chunks = whole.view([&[b, 2 * c, half], &size[2..]].concat().as_slice()).transpose(0, 1);
    let parts = Tensor::stack(&[chunks.narrow(0, 0, c), chunks.narrow(0, c, c).flip([0])], 2);
    parts.reshape([&[c, b, 2 * half], &size[2..]].concat().as_slice())
}

/// Each document (between neighbouring `bounds`) as far as the chunks hold its queries.
fn segments(chunks: &[Range<usize>], sequence: Option<usize>, bounds: &[usize]) -> Vec<Segment> {
    let mut out = Vec::new();
    let mut before = 0;
    for chunk in chunks {
        for document in bounds.windows(2) {
            let (start, end) = (document[0].max(chunk.start), document[1].min(chunk.end));
            if start < end {
                let queries = before + start - chunk.start..before + end - chunk.start;
                out.push(Segment { sequence, queries, keys: document[0]..end });
            }
        }
        before += chunk.len();
    }
    out
}
