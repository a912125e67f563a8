//! The GPU path on a stand-in for the device: CPU libtorch under CUDA's dispatch key, with memory that the host cannot touch
//! (tests/standin; docs/gpu.md says what it shows). herd finds it as it finds a card: a driver's node, then libtorch_cuda.so.

mod adapters;
mod attention;
mod commands;
mod failures;
mod memory;
mod own_kernels;
mod parity;
mod products;
mod traps;

use crate::support::{root, text};
use std::collections::hash_map::DefaultHasher;
use std::ffi::OsString;
use std::hash::{Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

/// Set in processes that have the stand-in.
const INSIDE_STANDIN: &str = "HERD_TEST_INSIDE_STANDIN";

/// The environment in which a process finds the stand-in; `None`, said once, where this libtorch has CUDA of its own.
fn environment() -> Option<Vec<(&'static str, OsString)>> {
    let folder = built().as_ref()?;
    let mut path = folder.clone().into_os_string();
    if let Some(own) = std::env::var_os("LD_LIBRARY_PATH") {
        path.push(":");
        path.push(own);
    }
    Some(vec![("LD_PRELOAD", folder.join("driver.so").into()), ("LD_LIBRARY_PATH", path), (INSIDE_STANDIN, "1".into())])
}

/// Runs the calling test (`name` as the harness knows it) once more in a process with the stand-in and more variables: true
/// there, false outside, where it has passed or been skipped.
fn inside(name: &str, more: &[(&str, &str)]) -> bool {
    if std::env::var_os(INSIDE_STANDIN).is_some() {
        assert_eq!(herd::kernels::device::cuda_device_count(), 1, "the stand-in is found");
        return true;
    }
    let Some(environment) = environment() else { return false };
    let mut child = Command::new(std::env::current_exe().unwrap());
    child.args(["--exact", name, "--nocapture", "--test-threads=1"]).envs(environment).envs(more.iter().copied());
    let out = child.output().unwrap();
    assert!(out.status.success() && text(&out).contains("1 passed"), "{}", text(&out));
    print!("{}", text(&out));
    false
}

/// The folder with both libraries, built by the C++ compiler that builds herd's own shim; once for its sources.
fn built() -> &'static Option<PathBuf> {
    static BUILT: OnceLock<Option<PathBuf>> = OnceLock::new();
    BUILT.get_or_init(|| {
        let libtorch = std::env::var_os("LIBTORCH").map_or_else(|| root().join("build/deps/libtorch"), PathBuf::from);
        if libtorch.join("lib/libtorch_cuda.so").exists() {
            eprintln!("skipped: {} has CUDA of its own, which herd would load instead", libtorch.display());
            return None;
        }
        Some(build(&libtorch))
    })
}

fn build(libtorch: &Path) -> PathBuf {
    let sources = root().join("tests/standin");
    let mut hash = DefaultHasher::new();
    libtorch.hash(&mut hash);
    for folder in [&sources, &root().join("tests/emu"), &root().join("src/kernels/cuda/source")] {
        for name in crate::support::names(folder) {
            std::fs::read(folder.join(name)).unwrap().hash(&mut hash);
        }
    }
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("standin-{:016x}", hash.finish()));
    if folder.exists() {
        return folder;
    }
    let new = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let root = std::env::var_os("LIBTORCH_INCLUDE").map_or_else(|| libtorch.to_path_buf(), PathBuf::from);
    let include = |sub: &str| format!("-I{}", root.join("include").join(sub).display());
    let compile = |source: &str, library: &str, more: &[String]| {
        let mut c = Command::new(std::env::var_os("CXX").unwrap_or_else(|| "c++".into()));
        c.args(["-std=c++17", "-O1", "-shared", "-fPIC", "-o"]).arg(new.path().join(library)).arg(sources.join(source));
        let out = c.args(more).output().expect("a C++ compiler");
        assert!(out.status.success(), "{source}: {}", text(&out));
    };
    compile("driver.cpp", "driver.so", &["-ldl".into()]);
    emulated_driver(&new.path().join("libcuda.so.1"), &[]);
    std::fs::create_dir(new.path().join("planted")).unwrap();
    emulated_driver(&new.path().join("planted/libcuda.so.1"), &["-DPLANT_NO_BARRIER"]);
    let abi = std::env::var("LIBTORCH_CXX11_ABI").unwrap_or_else(|_| "1".into());
    let link = format!("-L{}", libtorch.join("lib").display());
    let more = [include(""), include("torch/csrc/api/include"), format!("-D_GLIBCXX_USE_CXX11_ABI={abi}"), link];
    let libraries = ["-ltorch_cpu", "-lc10", "-Wl,-soname,libtorch_cuda.so"].map(String::from);
    compile("standin.cpp", "libtorch_cuda.so", &[&more[..], &libraries[..]].concat());
    // Another process may have been faster.
    let _ = std::fs::rename(new.keep(), &folder);
    folder
}

/// The driver that runs herd's own kernels under emulation (tests/emu), compiled from the sources that a card gets.
fn emulated_driver(library: &Path, more: &[&str]) {
    let emu = root().join("tests/emu");
    let mut c = Command::new(std::env::var_os("CXX").unwrap_or_else(|| "c++".into()));
    c.args(["-std=c++17", "-O2", "-ffp-contract=off", "-shared", "-fPIC", "-Wl,-soname,libcuda.so.1", "-o"])
        .arg(library);
    c.arg(format!("-I{}", emu.display())).arg(format!("-I{}", root().join("src/kernels/cuda/source").display()));
    let out = c.args(more).arg(emu.join("driver.cpp")).arg("-ldl").output().expect("a C++ compiler");
    assert!(out.status.success(), "{}", text(&out));
}
