#!/usr/bin/env bash
# Says what is missing before a build, instead of a page of compiler output.
set -euo pipefail

missing=0
need() {
    echo "herd cannot be built: $1 (hint: $2)" >&2
    missing=1
}

command -v cargo >/dev/null || need "no cargo in PATH" "install a Rust toolchain, 1.89 or newer"
command -v mpicc >/dev/null || need "no mpicc in PATH" "make deps, or on a cluster: module load openmpi"
command -v "${CMAKE:-cmake}" >/dev/null || need "no cmake in PATH" "make deps, or on a cluster: module load cmake; HDF5 needs 3.26"
if [ ! -e "${LIBTORCH:-}/lib/libtorch_cpu.so" ]; then
    need "LIBTORCH=${LIBTORCH:-} holds no lib/libtorch_cpu.so" "make deps, or point LIBTORCH at libtorch 2.11 (the torch folder of a Python environment will do)"
fi
exit $missing
