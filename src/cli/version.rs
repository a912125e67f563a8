//! What `herd --version` says: herd, its commit where known, libtorch, the MPI library.

use std::sync::LazyLock;

/// Several lines; the first is the version alone, as `-V` prints it.
pub fn long() -> &'static str {
    static TEXT: LazyLock<String> = LazyLock::new(|| {
        let commit = option_env!("HERD_COMMIT").map(|c| format!(" ({c})")).unwrap_or_default();
        let torch = option_env!("HERD_LIBTORCH").unwrap_or("version unknown");
        format!("{}{commit}\nlibtorch {torch}\nMPI {}", env!("CARGO_PKG_VERSION"), mpi())
    });
    &TEXT
}

/// Name and version of the MPI library, the part before the first comma or line end ("Open MPI v5.0.11").
fn mpi() -> String {
    // MPI_Get_library_version may be called before MPI_Init (MPI 4.1 §9.1.1).
    let full = mpi::environment::library_version().unwrap_or_default();
    let head = full.split(['\n', ',', '\0']).next().unwrap_or_default();
    head.split_whitespace().collect::<Vec<_>>().join(" ")
}
