//! Compiles CUDA C++ at run time through NVRTC, which libtorch's CUDA packages bring.
//!
//! Source: NVRTC (CUDA 12 and 13), "User Guide".

use crate::dynamic::{functions, Library};
use std::ffi::{c_char, c_void, CStr, CString};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

functions! {
    /// Each returns an `nvrtcResult`: 0 for success.
    Functions {
        nvrtcVersion(*mut i32, *mut i32) -> i32;
        nvrtcGetNumSupportedArchs(*mut i32) -> i32;
        nvrtcGetSupportedArchs(*mut i32) -> i32;
        nvrtcCreateProgram(*mut *mut c_void, *const c_char, *const c_char, i32, *const *const c_char, *const *const c_char) -> i32;
        nvrtcCompileProgram(*mut c_void, i32, *const *const c_char) -> i32;
        nvrtcGetProgramLogSize(*mut c_void, *mut usize) -> i32;
        nvrtcGetProgramLog(*mut c_void, *mut c_char) -> i32;
        nvrtcGetCUBINSize(*mut c_void, *mut usize) -> i32;
        nvrtcGetCUBIN(*mut c_void, *mut c_char) -> i32;
        nvrtcGetPTXSize(*mut c_void, *mut usize) -> i32;
        nvrtcGetPTX(*mut c_void, *mut c_char) -> i32;
        nvrtcDestroyProgram(*mut *mut c_void) -> i32;
        nvrtcGetErrorString(i32) -> *const c_char;
    }
}

/// The compiler of this process.
pub struct Nvrtc {
    functions: Functions,
    /// Compute capabilities that it knows, ten times, ascending.
    known: Vec<u32>,
    /// Its version, (major, minor).
    pub version: (i32, i32),
}

/// What is made of a source.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// Machine code of one compute capability, ten times.
    Cubin(u32),
    /// Text that the driver compiles for its card, ending with a zero byte.
    Ptx(u32),
}

/// A compiled source, and what the compiler said.
pub struct CompiledSource {
    /// Machine code or PTX, as the [`Target`] says.
    pub image: Vec<u8>,
    /// The compiler's words; empty where it had none.
    pub log: String,
}

impl Nvrtc {
    /// The compiler beside libtorch, else as the loader finds it; the error is the loader's own words.
    pub fn get() -> Result<&'static Nvrtc, String> {
        static NVRTC: OnceLock<Result<Nvrtc, String>> = OnceLock::new();
        NVRTC.get_or_init(Nvrtc::open).as_ref().map_err(Clone::clone)
    }

    fn open() -> Result<Nvrtc, String> {
        let mut names: Vec<CString> = Vec::new();
        for folder in folders() {
            // NVRTC looks for its builtins by the loader's rules alone: they are opened first, by their path.
            let files = matching(&folder, "libnvrtc-builtins.so");
            let here = matching(&folder, "libnvrtc.so");
            files.iter().filter_map(|p| path_name(p)).for_each(|builtins| {
                // SAFETY: a library of data.
                unsafe { libc::dlopen(builtins.as_ptr(), libc::RTLD_NOW | libc::RTLD_GLOBAL) };
            });
            names.extend(here.iter().filter_map(|p| path_name(p)));
        }
        names.extend([c"libnvrtc.so.13", c"libnvrtc.so.12"].map(CStr::to_owned));
        let names: Vec<&CStr> = names.iter().map(CString::as_c_str).collect();
        let functions = Functions::load(&Library::with(c"nvrtcCompileProgram", &names)?)?;
        let mut nvrtc = Nvrtc { functions, known: Vec::new(), version: (0, 0) };
        let (mut major, mut minor, mut count) = (0, 0, 0);
        let f = &nvrtc.functions;
        // SAFETY: out parameters, and an array as long as the compiler said.
        let known = unsafe {
            nvrtc.checked((f.nvrtcVersion)(&mut major, &mut minor), "nvrtcVersion")?;
            nvrtc.checked((f.nvrtcGetNumSupportedArchs)(&mut count), "nvrtcGetNumSupportedArchs")?;
            let mut all = vec![0i32; count.max(0) as usize];
            nvrtc.checked((f.nvrtcGetSupportedArchs)(all.as_mut_ptr()), "nvrtcGetSupportedArchs")?;
            all
        };
        nvrtc.version = (major, minor);
        nvrtc.known = known.into_iter().map(|a| a as u32).collect();
        nvrtc.known.sort_unstable();
        Ok(nvrtc)
    }

    /// What a card of this compute capability (ten times) takes: its machine code, or, where it is newer than this compiler, text of the
    /// newest that is known.
    pub fn target(&self, capability: u32) -> Result<Target, String> {
        if self.known.contains(&capability) {
            return Ok(Target::Cubin(capability));
        }
        let older = self.known.iter().rev().find(|k| **k < capability);
        older.map(|k| Target::Ptx(*k)).ok_or_else(|| {
            let (major, minor) = self.version;
            format!("NVRTC {major}.{minor} knows compute capabilities {:?}, none up to {capability}", self.known)
        })
    }

    /// Compiles `source`; the error holds the compiler's own words.
    pub fn compile(&self, source: &str, target: Target, more: &[&str]) -> Result<CompiledSource, String> {
        let architecture = match target {
            Target::Cubin(capability) => format!("--gpu-architecture=sm_{capability}"),
            Target::Ptx(capability) => format!("--gpu-architecture=compute_{capability}"),
        };
        let options = [architecture.as_str(), "--std=c++17"].into_iter().chain(more.iter().copied());
        let options: Vec<CString> = options.map(CString::new).collect::<Result<_, _>>().map_err(|e| e.to_string())?;
        let options: Vec<*const c_char> = options.iter().map(|o| o.as_ptr()).collect();
        let source = CString::new(source).map_err(|e| e.to_string())?;
        let (f, none) = (&self.functions, std::ptr::null());
        let mut program = std::ptr::null_mut();
        // SAFETY: terminated strings that outlive the program, which is destroyed below; sizes are asked before each copy.
        unsafe {
            let code = (f.nvrtcCreateProgram)(&mut program, source.as_ptr(), c"herd.cu".as_ptr(), 0, none, none);
            self.checked(code, "nvrtcCreateProgram")?;
            let code = (f.nvrtcCompileProgram)(program, options.len() as i32, options.as_ptr());
            let log = self.text(program, f.nvrtcGetProgramLogSize, f.nvrtcGetProgramLog).unwrap_or_default();
            let log = String::from_utf8_lossy(&log).trim_end_matches('\0').trim().to_string();
            let image = match (code, target) {
                (0, Target::Cubin(_)) => self.text(program, f.nvrtcGetCUBINSize, f.nvrtcGetCUBIN),
                (0, Target::Ptx(_)) => self.text(program, f.nvrtcGetPTXSize, f.nvrtcGetPTX),
                (code, _) => {
                    self.checked(code, "nvrtcCompileProgram").map(|()| Vec::new()).map_err(|e| format!("{e}: {log}"))
                }
            };
            (f.nvrtcDestroyProgram)(&mut program);
            Ok(CompiledSource { image: image?, log })
        }
    }

    /// Bytes whose number `size` tells and that `get` copies.
    unsafe fn text(
        &self, program: *mut c_void, size: unsafe extern "C" fn(*mut c_void, *mut usize) -> i32,
        get: unsafe extern "C" fn(*mut c_void, *mut c_char) -> i32,
    ) -> Result<Vec<u8>, String> {
        let mut bytes = 0;
        self.checked(size(program, &mut bytes), "the size of its result")?;
        let mut out = vec![0u8; bytes];
        self.checked(get(program, out.as_mut_ptr().cast()), "its result")?;
        Ok(out)
    }

    fn checked(&self, code: i32, what: &str) -> Result<(), String> {
        if code == 0 {
            return Ok(());
        }
        // SAFETY: a string that lives as long as the library.
        let words = unsafe { CStr::from_ptr((self.functions.nvrtcGetErrorString)(code)) };
        Err(format!("NVRTC error {code} at {what}: {}", words.to_string_lossy()))
    }
}

/// Where CUDA's libraries lie beside the libtorch that this process runs (PyPI's wheels; then a toolkit's usual place).
fn folders() -> Vec<PathBuf> {
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap_or_default();
    let torch = maps.lines().find_map(|l| l.split_whitespace().last().filter(|p| p.ends_with("/libtorch_cpu.so")));
    let mut out = Vec::new();
    if let Some(lib) = torch.and_then(|t| Path::new(t).parent()) {
        let packages = lib.join("../../nvidia");
        out.push(lib.to_path_buf());
        out.extend(["cu13", "cu12", "cuda_nvrtc"].map(|p| packages.join(p).join("lib")));
    }
    out.push(PathBuf::from("/usr/local/cuda/lib64"));
    out
}

/// Files of `folder` that are called `name` or `name.VERSION`, the newest name last.
fn matching(folder: &Path, name: &str) -> Vec<PathBuf> {
    let files = std::fs::read_dir(folder).into_iter().flatten().flatten().map(|e| e.path());
    let is = |p: &PathBuf| {
        let file = p.file_name().and_then(|f| f.to_str());
        file.and_then(|f| f.strip_prefix(name)).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
    };
    let mut found: Vec<PathBuf> = files.filter(is).collect();
    found.sort();
    found
}

fn path_name(path: &Path) -> Option<CString> {
    CString::new(path.to_str()?).ok()
}
