//! Tells the linker where libtorch lies, so that the binary finds it without LD_LIBRARY_PATH, and records for
//! `herd --version` which libtorch that is and, where the build sets HERD_COMMIT, the commit.

use std::path::Path;

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-env-changed=HERD_COMMIT");
    // torch-sys (links = "tch") hands on the directory it linked against.
    if let Ok(lib) = std::env::var("DEP_TCH_LIBTORCH_LIB") {
        println!("cargo:rustc-link-arg=-Wl,-rpath,{lib}");
        if let Some(version) = torch_version(Path::new(&lib)) {
            println!("cargo:rustc-env=HERD_LIBTORCH={version}");
        }
    }
}

/// `TORCH_VERSION` from the headers beside the libraries.
fn torch_version(lib: &Path) -> Option<String> {
    let header = lib.parent()?.join("include/torch/headeronly/version.h");
    let text = std::fs::read_to_string(header).ok()?;
    let (_, rest) = text.split_once("#define TORCH_VERSION \\")?;
    Some(rest.split('"').nth(1)?.to_string())
}
