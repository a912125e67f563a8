//! herd's own kernels on a card: compiled once for its compute capability, kept on the node's own disk, loaded once a process.

use super::driver::{Driver, Function, Grid, Module};
use super::nvrtc::{Nvrtc, Target};
use crate::kernels::ffi;
use crate::kernels::sum::xxh3;
use crate::threads::lock;
use std::collections::HashMap;
use std::ffi::c_void;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use tch::{Device, Tensor};

/// The kernels' source: CUDA C++ without a header.
pub const SOURCE: &str = concat!(
    include_str!("source/common.cuh"),
    include_str!("source/norm.cu"),
    include_str!("source/elementwise.cu"),
    include_str!("source/loss.cu"),
    include_str!("source/flat.cu")
);

/// Kernels that are loaded on one device.
pub struct OwnKernels {
    driver: &'static Driver,
    module: Module,
    index: usize,
    found: Mutex<HashMap<&'static str, Function>>,
}

/// An argument of a kernel, in the kernel's own type.
pub enum Argument<'a> {
    /// The address of its first element; the kernel's pointee is the tensor's dtype.
    Tensor(&'a Tensor),
    /// A null pointer.
    Null,
    /// An `int`.
    I32(i32),
    /// A `long long`.
    I64(i64),
    /// A `float`.
    F32(f32),
    /// A struct of nine floats.
    Floats([f32; 9]),
}

impl OwnKernels {
    /// Of `device`; `None`, with the reason said once, where they cannot be had, or where HERD_CUDA_KERNELS=libtorch asks for libtorch's
    /// operations.
    pub fn of(device: Device) -> Option<&'static OwnKernels> {
        static LOADED: Mutex<Vec<(usize, Option<&'static OwnKernels>)>> = Mutex::new(Vec::new());
        let Device::Cuda(index) = device else { return None };
        let mut loaded = lock(&LOADED);
        if let Some((_, kernels)) = loaded.iter().find(|(i, _)| *i == index) {
            return *kernels;
        }
        let kernels = match OwnKernels::load(index) {
            Ok(kernels) => Some(&*Box::leak(Box::new(kernels))),
            Err(why) => {
                tracing::warn!("norms, SwiGLU, rotary embedding, loss and AdamW run as libtorch's elementwise operations on device {index}, which is slower: {why}");
                None
            }
        };
        loaded.push((index, kernels));
        kernels
    }

    fn load(index: usize) -> Result<OwnKernels, String> {
        if std::env::var_os("HERD_CUDA_KERNELS").is_some_and(|v| v == "libtorch") {
            return Err("HERD_CUDA_KERNELS=libtorch".into());
        }
        let (driver, nvrtc) = (Driver::get()?, Nvrtc::get()?);
        let target = nvrtc.target(driver.capability(index)?)?;
        let module = driver.load(&image(nvrtc, target)?)?;
        Ok(OwnKernels { driver, module, index, found: Mutex::default() })
    }

    /// Puts kernel `name` on the current stream.
    ///
    /// # Panics
    /// With the driver's words where it refuses, as libtorch's own operations do.
    ///
    /// # Safety
    /// The arguments are those that the kernel takes, by number and type, and the tensors are as large as it reads and writes.
    pub unsafe fn launch(&self, name: &'static str, grid: Grid, arguments: &[Argument]) {
        let mut slots: Vec<[u64; 5]> = arguments.iter().map(Argument::bytes).collect();
        let mut pointers: Vec<*mut c_void> = slots.iter_mut().map(|s| s.as_mut_ptr().cast()).collect();
        let done = self.function(name).and_then(|f| {
            let stream = ffi::herd_current_stream(self.index as i64);
            self.driver.launch(f, grid, stream, &mut pointers)
        });
        if let Err(why) = done {
            panic!("CUDA kernel {name}: {why}");
        }
    }

    fn function(&self, name: &'static str) -> Result<Function, String> {
        let mut found = lock(&self.found);
        if let Some(f) = found.get(name) {
            return Ok(*f);
        }
        let f = self.driver.function(self.module, name)?;
        found.insert(name, f);
        Ok(f)
    }
}

impl Argument<'_> {
    /// The value's own bytes, from the first.
    fn bytes(&self) -> [u64; 5] {
        let mut out = [0u64; 5];
        let bytes: &mut [u8] = bytemuck::cast_slice_mut(&mut out);
        let mut put = |value: &[u8]| bytes[..value.len()].copy_from_slice(value);
        match self {
            Argument::Tensor(t) => put(&(t.data_ptr() as usize).to_ne_bytes()),
            Argument::Null => {}
            Argument::I32(v) => put(&v.to_ne_bytes()),
            Argument::I64(v) => put(&v.to_ne_bytes()),
            Argument::F32(v) => put(&v.to_ne_bytes()),
            Argument::Floats(v) => put(bytemuck::cast_slice(v)),
        }
        out
    }
}

/// The compiled kernels: from this node's disk, or made and left there.
fn image(nvrtc: &Nvrtc, target: Target) -> Result<Vec<u8>, String> {
    let Some(folder) = cache() else { return nvrtc.compile(SOURCE, target, &[]).map(|c| c.image) };
    let (major, minor) = nvrtc.version;
    let (kind, capability) = match target {
        Target::Cubin(c) => ("cubin", c),
        Target::Ptx(c) => ("ptx", c),
    };
    let file = folder.join(format!("kernels-{:016x}-{major}.{minor}-{capability}.{kind}", xxh3(SOURCE.as_bytes())));
    if let Some(image) = kept(&file) {
        return Ok(image);
    }
    let started = std::time::Instant::now();
    let image = nvrtc.compile(SOURCE, target, &[])?.image;
    tracing::info!(
        "own kernels compiled for compute capability {capability} in {:.1} s, kept as {}",
        started.elapsed().as_secs_f64(),
        file.display()
    );
    // A cache that cannot be written costs the next start this time again.
    let mut bytes = xxh3(&image).to_le_bytes().to_vec();
    bytes.extend(&image);
    let own = file.with_extension(std::process::id().to_string()); // ranks of a node start together
    let _ = crate::durable::write_synced(&own, &bytes).map(|()| std::fs::rename(&own, &file));
    Ok(image)
}

/// A file of the cache: the sum of its image, then the image. `None` where it is not there or is damaged.
fn kept(file: &Path) -> Option<Vec<u8>> {
    let bytes = std::fs::read(file).ok()?;
    let (sum, image) = bytes.split_first_chunk::<8>()?;
    (u64::from_le_bytes(*sum) == xxh3(image)).then(|| image.to_vec())
}

/// A folder on the node's own disk that only this user writes; `None` where there is none.
fn cache() -> Option<PathBuf> {
    let user = rustix::process::geteuid().as_raw();
    let folder = std::env::temp_dir().join(format!("herd-kernels-{user}"));
    let _ = std::fs::DirBuilder::new().mode(0o700).create(&folder);
    // In a folder that others write to, somebody else may have made it.
    let m = std::fs::symlink_metadata(&folder).ok()?;
    (m.is_dir() && m.uid() == user && m.mode() & 0o022 == 0).then_some(folder)
}
