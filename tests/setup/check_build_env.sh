#!/usr/bin/env bash
# Says what is missing before a build, instead of a page of compiler output.
set -euo pipefail

missing=0
need() {
    echo "herd cannot be built: $1 (hint: $2)" >&2
    missing=1
}

command -v cargo >/dev/null || need "no cargo in PATH" "install a Rust toolchain, 1.89 or newer"
command -v "${MPICC:-mpicc}" >/dev/null || need "no ${MPICC:-mpicc} in PATH" "make deps, or on a cluster: module load openmpi"
cmake=$("${CMAKE:-cmake}" --version 2>/dev/null | sed -n 's/^cmake version //p') || true
if [ "$(printf '%s\n' 3.26 "${cmake:-0}" | sort -V | head -1)" != 3.26 ]; then
    need "cmake in PATH is ${cmake:-missing}, and HDF5 needs 3.26" "make deps, or on a cluster: module load cmake"
fi
if [ ! -e "${LIBTORCH:-}/lib/libtorch_cpu.so" ]; then
    need "LIBTORCH=${LIBTORCH:-} holds no lib/libtorch_cpu.so" "make deps, or point LIBTORCH at libtorch 2.11 (the torch folder of a Python environment will do)"
fi
exit $missing
