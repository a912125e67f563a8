//! Which programs, libraries and files a host runs herd with.

use super::fingerprint;
use crate::world::library;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Libraries whose content counts, by the beginning of their file's name.
const LIBRARIES: &[(&str, &str)] = &[
    ("libtorch", "libtorch_cpu.so"),
    ("libtorch cuda", "libtorch_cuda.so"),
    ("mpi library", "libmpi.so"),
    ("mpi library", "libmpich.so"),
    ("nccl", "libnccl.so"),
];

/// Name → version or digest.
pub fn all(config: Option<&Path>) -> BTreeMap<String, String> {
    let mut out = BTreeMap::new();
    let mut note = |name: &str, value: Option<String>| {
        if let Some(value) = value {
            out.insert(name.to_string(), value);
        }
    };
    let digest = |path: &Path| Some(fingerprint::of(path).unwrap_or_else(|e| format!("cannot be read: {e}")));
    // the program that runs, also where its file has been replaced since
    note("herd", digest(Path::new("/proc/self/exe")));
    let mapped = mapped();
    for (name, file) in LIBRARIES {
        note(name, mapped.iter().find(|p| begins(p, file)).and_then(|p| digest(p)));
    }
    let version = library();
    note("mpi", Some(version.lines().next().unwrap_or_default().split(',').next().unwrap_or_default().trim().into()));
    note("configuration", config.and_then(digest));
    let system = rustix::system::uname();
    note("kernel", Some(system.release().to_string_lossy().into_owned()));
    note("glibc", Some(glibc()));
    note("cpu", cpu(&std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default()));
    note("driver", std::fs::read_to_string("/proc/driver/nvidia/version").ok().and_then(|t| driver(&t)));
    out
}

fn begins(path: &Path, name: &str) -> bool {
    path.file_name().is_some_and(|f| f.to_string_lossy().starts_with(name))
}

/// Files that are mapped into this process.
fn mapped() -> Vec<PathBuf> {
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap_or_default();
    let mut files: Vec<PathBuf> = maps.lines().filter_map(|l| l.find('/').map(|at| PathBuf::from(&l[at..]))).collect();
    files.dedup();
    files
}

fn glibc() -> String {
    // SAFETY: a static string of the C library.
    let text = unsafe { std::ffi::CStr::from_ptr(libc::gnu_get_libc_version()) };
    text.to_string_lossy().into_owned()
}

/// What a processor calls itself (proc_cpuinfo(5)); on Arm its implementer and part.
fn cpu(info: &str) -> Option<String> {
    let value = |key: &str| {
        let found = info.lines().filter_map(|l| l.split_once(':')).find(|(k, _)| k.trim() == key);
        found.map(|(_, v)| v.trim().to_string())
    };
    value("model name").or_else(|| Some(format!("{} {}", value("CPU implementer")?, value("CPU part")?)))
}

/// The version in `NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.54.15  Tue …`.
fn driver(text: &str) -> Option<String> {
    let line = text.lines().find(|l| l.starts_with("NVRM version"))?;
    let number = |w: &&str| w.contains('.') && w.chars().all(|c| c.is_ascii_digit() || c == '.');
    line.split_whitespace().find(number).map(str::to_string)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_of_the_system() {
        let nvrm =
            "NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.54.15  Tue Mar  5 22:23:56 UTC 2024\nGCC version: 12";
        assert_eq!(driver(nvrm).as_deref(), Some("550.54.15"));
        let open = "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  570.124.06  Release Build";
        assert_eq!(driver(open).as_deref(), Some("570.124.06"));
        assert_eq!(driver(""), None);
        assert_eq!(cpu("processor\t: 0\nmodel name\t: AMD EPYC 9B45\n").as_deref(), Some("AMD EPYC 9B45"));
        assert_eq!(cpu("CPU implementer\t: 0x41\nCPU part\t: 0xd4f\n").as_deref(), Some("0x41 0xd4f"));
    }

    #[test]
    fn this_process_knows_its_program_and_libraries() {
        let all = all(None);
        for name in ["herd", "libtorch", "mpi", "kernel", "glibc", "cpu"] {
            assert!(all.contains_key(name), "{name} is not in {all:?}");
        }
        assert!(!all.contains_key("configuration"));
    }
}
