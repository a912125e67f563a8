//! CPU tensors as slices. A view exists only where dtype, device, strides and alignment are right, so a kernel that has one
//! need not check again; where they are not, the caller falls back to libtorch.

use super::simd::Element;
use half::bf16;
use std::marker::PhantomData;
use tch::{Device, Kind, Tensor};

/// The dtype that an element type stands for.
pub trait TensorElement: Copy + Send + Sync + 'static {
    const KIND: Kind;
}
impl TensorElement for f32 {
    const KIND: Kind = Kind::Float;
}
impl TensorElement for bf16 {
    const KIND: Kind = Kind::BFloat16;
}
impl TensorElement for i64 {
    const KIND: Kind = Kind::Int64;
}

/// An element type that kernels compute with and that tensors can hold.
pub trait Real: Element + TensorElement {}
impl Real for f32 {}
impl Real for bf16 {}

/// Rows of a tensor: `rows` runs of `cols` adjacent elements, `stride` elements apart.
#[derive(Clone, Copy)]
pub struct Rows<'a, E> {
    ptr: *mut E,
    pub rows: usize,
    pub cols: usize,
    pub stride: usize,
    tensor: PhantomData<&'a Tensor>,
}

// SAFETY: a pointer into the tensor's storage, which lives as long as 'a; writing is unsafe and says who may.
unsafe impl<E: Send> Send for Rows<'_, E> {}
// SAFETY: as above.
unsafe impl<E: Sync> Sync for Rows<'_, E> {}

impl<'a, E: TensorElement> Rows<'a, E> {
    /// A 2-D CPU tensor with adjacent elements in its rows.
    pub fn matrix(t: &'a Tensor) -> Option<Self> {
        let (ptr, size, stride) = parts::<E>(t)?;
        let ([rows, cols], [step, unit]): ([usize; 2], [usize; 2]) =
            (size[..].try_into().ok()?, stride[..].try_into().ok()?);
        ((unit == 1 || cols <= 1) && (step >= cols || rows <= 1)).then_some(Rows::new(ptr, rows, cols, step.max(cols)))
    }

    /// A contiguous CPU tensor of any shape, as one row.
    pub fn flat(t: &'a Tensor) -> Option<Self> {
        let (ptr, size, _) = parts::<E>(t)?;
        let len = size.iter().product();
        t.is_contiguous().then_some(Rows::new(ptr, 1, len, len))
    }
}

impl<'a, E: Copy> Rows<'a, E> {
    fn new(ptr: *mut E, rows: usize, cols: usize, stride: usize) -> Self {
        Rows { ptr, rows, cols, stride, tensor: PhantomData }
    }

    /// Rows of working memory.
    ///
    /// # Safety
    /// The rows lie in one allocation that outlives 'a, aligned for E.
    pub unsafe fn in_scratch(ptr: *mut E, rows: usize, cols: usize, stride: usize) -> Self {
        Rows::new(ptr, rows, cols, stride)
    }

    #[inline(always)]
    pub fn row(&self, i: usize) -> &'a [E] {
        assert!(i < self.rows);
        // SAFETY: in bounds by construction; alive for 'a.
        unsafe { std::slice::from_raw_parts(self.ptr.add(i * self.stride), self.cols) }
    }

    /// # Safety
    /// Nobody else reads or writes this row while the slice lives.
    #[allow(clippy::mut_from_ref)]
    #[inline(always)]
    pub unsafe fn row_mut(&self, i: usize) -> &mut [E] {
        assert!(i < self.rows);
        std::slice::from_raw_parts_mut(self.ptr.add(i * self.stride), self.cols)
    }

    /// Columns `range` of the row.
    ///
    /// # Safety
    /// Nobody else reads or writes these elements while the slice lives.
    #[allow(clippy::mut_from_ref)]
    pub unsafe fn part_mut(&self, i: usize, range: std::ops::Range<usize>) -> &mut [E] {
        assert!(i < self.rows && range.start <= range.end && range.end <= self.cols);
        std::slice::from_raw_parts_mut(self.ptr.add(i * self.stride + range.start), range.len())
    }

    pub fn ptr(&self) -> *mut E {
        self.ptr
    }
}

/// A tensor [B,S,heads,D] whose last dim is adjacent; batch, token and head may be any (non-negative) stride apart.
#[derive(Clone, Copy)]
pub struct Heads<'a, E> {
    ptr: *mut E,
    pub batch: usize,
    pub tokens: usize,
    pub heads: usize,
    pub width: usize,
    strides: [usize; 3],
    tensor: PhantomData<&'a Tensor>,
}

// SAFETY: as for Rows.
unsafe impl<E: Send> Send for Heads<'_, E> {}
// SAFETY: as for Rows.
unsafe impl<E: Sync> Sync for Heads<'_, E> {}

impl<'a, E: TensorElement> Heads<'a, E> {
    pub fn of(t: &'a Tensor) -> Option<Self> {
        let (ptr, size, stride) = parts::<E>(t)?;
        let [batch, tokens, heads, width] = size[..].try_into().ok()?;
        let unit_stride = stride[3] == 1 || width <= 1;
        let strides = [stride[0], stride[1], stride[2]];
        unit_stride.then_some(Heads { ptr, batch, tokens, heads, width, strides, tensor: PhantomData })
    }
}

impl<'a, E: Copy> Heads<'a, E> {
    /// The tokens of one head of one sequence: [S,D].
    pub fn head(&self, b: usize, h: usize) -> Rows<'a, E> {
        assert!(b < self.batch && h < self.heads);
        // SAFETY: in bounds of the tensor.
        let ptr = unsafe { self.ptr.add(b * self.strides[0] + h * self.strides[2]) };
        Rows::new(ptr, self.tokens, self.width, self.strides[1])
    }

    /// The heads of one token: [heads,D].
    pub fn token(&self, b: usize, s: usize) -> Rows<'a, E> {
        assert!(b < self.batch && s < self.tokens);
        // SAFETY: in bounds of the tensor.
        let ptr = unsafe { self.ptr.add(b * self.strides[0] + s * self.strides[1]) };
        Rows::new(ptr, self.heads, self.width, self.strides[2])
    }

    /// Rows that a parallel loop may write apart: no two heads or tokens overlap.
    pub fn disjoint(&self) -> bool {
        let mut dims = [(self.strides[0], self.batch), (self.strides[1], self.tokens), (self.strides[2], self.heads)];
        dims.sort_by_key(|d| d.0);
        let mut extent = self.width;
        for (stride, n) in dims.into_iter().filter(|d| d.1 > 1) {
            if stride < extent {
                return false;
            }
            extent += stride * (n - 1);
        }
        true
    }
}

/// Pointer, sizes and strides of a dense CPU tensor of dtype E with elements.
fn parts<E: TensorElement>(t: &Tensor) -> Option<(*mut E, Vec<usize>, Vec<usize>)> {
    if t.kind() != E::KIND || t.device() != Device::Cpu || t.is_sparse() || t.numel() == 0 {
        return None;
    }
    let unsigned = |v: Vec<i64>| v.into_iter().map(|x| usize::try_from(x).ok()).collect::<Option<Vec<_>>>();
    let ptr = t.data_ptr() as *mut E;
    ptr.is_aligned().then_some((ptr, unsigned(t.size())?, unsigned(t.stride())?))
}
