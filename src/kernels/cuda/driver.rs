//! The NVIDIA driver's functions that launch herd's own kernels: looked up at run time, as libtorch_cuda is.
//!
//! Source: CUDA Driver API 12 and 13, sections Device, Module and Execution Control Management.

use crate::dynamic::{functions, Library};
use std::ffi::{c_char, c_void, CStr, CString};
use std::sync::OnceLock;

functions! {
    /// Each returns a `CUresult`: 0 for success.
    Functions {
        cuInit(u32) -> i32;
        cuDeviceGet(*mut i32, i32) -> i32;
        cuDeviceGetAttribute(*mut i32, i32, i32) -> i32;
        cuModuleLoadData(*mut *mut c_void, *const c_void) -> i32;
        cuModuleGetFunction(*mut *mut c_void, *mut c_void, *const c_char) -> i32;
        cuLaunchKernel(*mut c_void, u32, u32, u32, u32, u32, u32, u32, *mut c_void, *mut *mut c_void, *mut *mut c_void) -> i32;
        cuGetErrorString(i32, *mut *const c_char) -> i32;
    }
}

/// `CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR` and `_MINOR`.
const CAPABILITY: [i32; 2] = [75, 76];

/// The driver of this process.
pub struct Driver(Functions);

/// A `CUmodule`: kernels that are loaded into the current context; never unloaded.
#[derive(Clone, Copy)]
pub struct Module(*mut c_void);

/// A `CUfunction` of a [`Module`].
#[derive(Clone, Copy)]
pub struct Function(*mut c_void);

// SAFETY: handles of the driver, which any thread may use.
unsafe impl Send for Module {}
unsafe impl Sync for Module {}
unsafe impl Send for Function {}
unsafe impl Sync for Function {}

/// Blocks and threads of a launch: a grid of x · y blocks, x < 2³¹ and y < 2¹⁶, each of `threads` threads, whole warps up to 1,024.
#[derive(Clone, Copy, Debug)]
pub struct Grid {
    /// Blocks along x, at least 1.
    pub x: i64,
    /// Blocks along y, at least 1.
    pub y: i64,
    /// Threads of one block.
    pub threads: i64,
}

impl Driver {
    /// The driver; the error is the loader's own words.
    pub fn get() -> Result<&'static Driver, String> {
        static DRIVER: OnceLock<Result<Driver, String>> = OnceLock::new();
        let open = || {
            let library = Library::with(c"cuModuleLoadData", &[c"libcuda.so.1", c"libcuda.so"])?;
            let driver = Driver(Functions::load(&library)?);
            // SAFETY: takes a flag that must be 0.
            driver.checked(unsafe { (driver.0.cuInit)(0) }, "cuInit")?;
            Ok(driver)
        };
        DRIVER.get_or_init(open).as_ref().map_err(Clone::clone)
    }

    /// Compute capability of the device that libtorch calls `index`, ten times: 90 for 9.0.
    pub fn capability(&self, index: usize) -> Result<u32, String> {
        let mut device = 0;
        // SAFETY: out parameters, here and below.
        self.checked(unsafe { (self.0.cuDeviceGet)(&mut device, index as i32) }, "cuDeviceGet")?;
        let attribute = |which: i32| {
            let mut value = 0;
            let code = unsafe { (self.0.cuDeviceGetAttribute)(&mut value, which, device) };
            self.checked(code, "cuDeviceGetAttribute").map(|()| value as u32)
        };
        Ok(10 * attribute(CAPABILITY[0])? + attribute(CAPABILITY[1])?)
    }

    /// Loads a cubin, or PTX that ends with a zero byte, into the current context.
    pub fn load(&self, image: &[u8]) -> Result<Module, String> {
        let mut module = std::ptr::null_mut();
        // SAFETY: the image holds its own length (ELF), or ends with a zero byte.
        let code = unsafe { (self.0.cuModuleLoadData)(&mut module, image.as_ptr().cast()) };
        self.checked(code, "cuModuleLoadData").map(|()| Module(module))
    }

    /// The kernel `name` of a module.
    pub fn function(&self, module: Module, name: &str) -> Result<Function, String> {
        let name = CString::new(name).map_err(|e| e.to_string())?;
        let mut function = std::ptr::null_mut();
        // SAFETY: a module of this driver; a terminated name.
        let code = unsafe { (self.0.cuModuleGetFunction)(&mut function, module.0, name.as_ptr()) };
        self.checked(code, &format!("the kernel {}", name.to_string_lossy())).map(|()| Function(function))
    }

    /// Puts a kernel behind what `stream` has to do.
    ///
    /// # Safety
    /// `arguments` point to values of the types that the kernel takes, in its order; device memory among them is as large as the kernel
    /// reads and writes, and is used by work on `stream` alone.
    pub unsafe fn launch(
        &self, f: Function, grid: Grid, stream: *mut c_void, arguments: &mut [*mut c_void],
    ) -> Result<(), String> {
        let none = std::ptr::null_mut();
        let (x, y, threads) = (grid.x as u32, grid.y as u32, grid.threads as u32);
        let code = (self.0.cuLaunchKernel)(f.0, x, y, 1, threads, 1, 1, 0, stream, arguments.as_mut_ptr(), none);
        self.checked(code, "cuLaunchKernel")
    }

    fn checked(&self, code: i32, what: &str) -> Result<(), String> {
        if code == 0 {
            return Ok(());
        }
        let mut text = std::ptr::null();
        // SAFETY: an out parameter that gets a string of the driver's, or stays null.
        let words = unsafe {
            (self.0.cuGetErrorString)(code, &mut text);
            match text.is_null() {
                true => "unknown error".into(),
                false => CStr::from_ptr(text).to_string_lossy(),
            }
        };
        Err(format!("CUDA driver error {code} at {what}: {words}"))
    }
}
