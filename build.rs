//! Compiles the libtorch shim and the parent of supervisors, tells the linker where libtorch lies, so that the binary finds it without
//! LD_LIBRARY_PATH, and records for `herd --version` which libtorch that is and, where the build sets HERD_COMMIT, the
//! commit.

use std::path::Path;

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-env-changed=HERD_COMMIT");
    println!("cargo:rerun-if-changed=src/kernels/native");
    // torch-sys (links = "tch") hands on the directory it linked against.
    println!("cargo:rerun-if-env-changed=DEP_TCH_LIBTORCH_LIB");
    let Ok(lib) = std::env::var("DEP_TCH_LIBTORCH_LIB") else {
        panic!("torch-sys did not say where libtorch is (DEP_TCH_LIBTORCH_LIB); is LIBTORCH set?");
    };
    println!("cargo:rustc-link-arg=-Wl,-rpath,{lib}");
    if let Some(version) = torch_version(Path::new(&lib)) {
        println!("cargo:rustc-env=HERD_LIBTORCH={version}");
    }
    shim(Path::new(&lib));
    parent();
}

/// The small program that starts a supervisor again, which the binary carries: with the C library in it, so that it stays small in
/// memory, where this system has that library's archive.
fn parent() {
    let source = "src/launch/parent/program.rs";
    println!("cargo:rerun-if-changed={source}");
    let variable = |name: &str| std::env::var(name).unwrap_or_else(|_| panic!("cargo sets {name}"));
    let out = Path::new(&variable("OUT_DIR")).join("herd-parent");
    let build = |features: &[&str]| {
        let mut rustc = std::process::Command::new(variable("RUSTC"));
        rustc.args(["--edition=2021", "--crate-name=herd_parent", "--target", &variable("TARGET")]);
        rustc.args(["-O", "-Cpanic=abort", "-Cstrip=symbols"]).args(features).arg("-o").arg(&out).arg(source);
        rustc.status().is_ok_and(|status| status.success())
    };
    if !build(&["-Ctarget-feature=+crt-static"]) && !build(&[]) {
        panic!("{source} cannot be compiled");
    }
}

fn shim(lib: &Path) {
    println!("cargo:rerun-if-env-changed=LIBTORCH_INCLUDE");
    println!("cargo:rerun-if-env-changed=LIBTORCH_CXX11_ABI");
    // Where torch-sys looks: LIBTORCH_INCLUDE/include, else beside the libraries.
    let include = match std::env::var("LIBTORCH_INCLUDE") {
        Ok(root) => Path::new(&root).join("include"),
        Err(_) => lib.join("../include"),
    };
    let abi = std::env::var("LIBTORCH_CXX11_ABI").unwrap_or_else(|_| "1".into());
    cc::Build::new()
        .cpp(true)
        .std("c++17")
        .include(&include)
        .include(include.join("torch/csrc/api/include"))
        .define("_GLIBCXX_USE_CXX11_ABI", abi.as_str())
        // libtorch's parallel_for is a header around `omp parallel`: only with this does it use libtorch's threads.
        .flag("-fopenmp")
        .warnings(false)
        .files(["parallel", "memory", "device", "attention"].map(|f| format!("src/kernels/native/{f}.cpp")))
        .compile("herd_shim");
    // Two OpenMP runtimes in a process are two thread pools: link the one that libtorch carries, if it carries one.
    match bundled_openmp(lib) {
        Some(file) => println!("cargo:rustc-link-lib=dylib:+verbatim={file}"),
        None => println!("cargo:rustc-link-lib=dylib=gomp"),
    }
    for name in ["torch_cpu", "c10"] {
        println!("cargo:rustc-link-lib=dylib={name}");
    }
}

/// File name of the libgomp in libtorch's own directory (`libgomp.so.1`, or `libgomp-<hash>.so.1` in some wheels).
fn bundled_openmp(lib: &Path) -> Option<String> {
    let names = std::fs::read_dir(lib).ok()?.flatten().filter_map(|e| e.file_name().into_string().ok());
    names.filter(|n| n.starts_with("libgomp") && n.contains(".so")).min()
}

/// `TORCH_VERSION` from the headers beside the libraries.
fn torch_version(lib: &Path) -> Option<String> {
    let header = lib.parent()?.join("include/torch/headeronly/version.h");
    let text = std::fs::read_to_string(header).ok()?;
    let (_, rest) = text.split_once("#define TORCH_VERSION \\")?;
    Some(rest.split('"').nth(1)?.to_string())
}
