#!/usr/bin/env bash
# Installs what herd needs on Debian 12 or Ubuntu 24.04, and only what is missing.
# usage: deps.sh FOLDER base|test
#   base  system packages, and in FOLDER a Python environment with libtorch and cmake: enough to build and for the demo
#   test  into the same environment: all of PyTorch, transformers and what else the tests compare with
set -euo pipefail
folder=$1 what=$2
cd "$(dirname "$0")/../.."

packages=(
    gcc g++ make pkg-config libclang-dev           # to build; libclang is for the MPI bindings
    libopenmpi-dev openmpi-bin                     # MPI
    slurm-wlm slurm-wlm-basic-plugins munge        # a private Slurm
    iproute2 util-linux procps                     # its nodes: network, namespaces, processes
    libfaketime e2fsprogs                          # nodes with a wrong clock, a filesystem that blocks: make drill
    python3 python3-venv ca-certificates           # for the wheels below
    bible-kjv bible-kjv-text                       # real text to train on: 4.3 MB, public domain
    shellcheck
)
installed=no

say() { echo "deps: $*"; }
fail() {
    echo "deps: $*" >&2
    exit 1
}

as_root() {
    if [ "$(id -u)" = 0 ]; then
        "$@"
    else
        command -v sudo >/dev/null || fail "these packages are missing: ${missing[*]}; neither root nor sudo here (hint: ask an administrator, or build against site modules: docs/cluster.md)"
        sudo "$@"
    fi
}

present() { [ "$(dpkg-query -W -f='${db:Status-Status}' "$1" 2>/dev/null)" = installed ]; }

apt_install() {
    missing=()
    local package
    for package in "$@"; do present "$package" || missing+=("$package"); done
    [ ${#missing[@]} -gt 0 ] || return 0
    say "installing ${missing[*]}"
    as_root apt-get update -qq
    as_root env DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends "${missing[@]}" >/dev/null
    installed=yes
}

system_packages() {
    command -v apt-get >/dev/null || fail "no apt-get: this installs on Debian 12 and Ubuntu 24.04 only (hint: on a cluster, build against site modules: docs/cluster.md)"
    apt_install "${packages[@]}"
    # Slurm's PMIx plugin is in slurm-wlm-basic-plugins or, where Slurm is packaged in more parts, in one of its own.
    if ! compgen -G '/usr/lib/*/slurm*/mpi_pmix.so' >/dev/null; then
        local plugins
        plugins=$(apt-cache pkgnames slurm-wlm | grep -E 'pmix|mpi-plugin' | sort | paste -sd' ')
        # shellcheck disable=SC2086
        apt_install ${plugins:-slurm-wlm-plugins}
        compgen -G '/usr/lib/*/slurm*/mpi_pmix.so' >/dev/null || fail "no package here brings Slurm's mpi_pmix plugin"
    fi
}

# The first Python that is new enough and can make environments.
find_python() {
    local candidate
    for candidate in python3 /usr/bin/python3; do
        "$candidate" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo "$candidate" && return
    done
    fail "no Python 3.11 or newer with venv; python3 is $(python3 --version 2>&1)"
}

# A list of requirements is installed once; the copy beside the environment says which.
pip_install() {
    local list=$1 done_list
    done_list=$folder/python/installed-$(basename "$list")
    cmp -s "$list" "$done_list" && return
    if [ ! -x "$folder/python/bin/python" ] || ! "$folder/python/bin/python" -c pass 2>/dev/null; then
        local python
        python=$(find_python)
        say "making a Python environment in $folder/python with $($python --version)"
        rm -rf "$folder/python"
        "$python" -m venv "$folder/python"
    fi
    say "installing ${list}: $(grep -v '^#' "$list" | cut -d';' -f1 | paste -sd' ')"
    "$folder/python/bin/python" -m pip install --quiet --disable-pip-version-check "${@:2}" -r "$list"
    cp "$list" "$done_list"
    installed=yes
}

# torch.compile, which the benchmarks measure against, compiles code that includes Python.h.
python_headers() {
    local include
    include=$("$folder/python/bin/python" -c 'import sysconfig; print(sysconfig.get_path("include"))')
    [ -e "$include/Python.h" ] || apt_install python3-dev
}

# FOLDER/libtorch: headers and only the CPU libraries of the wheel. Linking the CUDA ones as well would need another
# 3 GB of packages. libtorch.so only ties the two together, so libtorch_cpu.so stands in for it.
libtorch() {
    pip_install tests/setup/requirements-base.txt --no-deps
    local packages=("$folder"/python/lib/python3*/site-packages) library
    mkdir -p "$folder/libtorch/lib" "$folder/bin"
    ln -sf "$folder/python/bin/cmake" "$folder/bin/cmake"
    ln -sfn "${packages[0]}/torch/include" "$folder/libtorch/include"
    for library in libtorch_cpu.so libc10.so libgomp.so.1; do
        ln -sf "${packages[0]}/torch/lib/$library" "$folder/libtorch/lib/$library"
    done
    ln -sf libtorch_cpu.so "$folder/libtorch/lib/libtorch.so"
    ln -sfn "${packages[0]}/nvidia" "$folder/nvidia" # libtorch_cpu.so looks for it at ../../nvidia
    if LD_LIBRARY_PATH='' ldd "$folder/libtorch/lib/libtorch_cpu.so" | grep 'not found' >&2; then
        fail "libtorch_cpu.so does not find the libraries above"
    fi
}

# Lmod and environment-modules conflict as packages, so both are unpacked into FOLDER/modules; what they need to run is
# installed. For a real `module load herd` in the demo and the tests.
module_tools() {
    [ ! -e "$folder/modules/done" ] || return 0
    local needs download
    apt-cache show lmod >/dev/null 2>&1 || as_root apt-get update -qq
    mapfile -t needs < <(apt-cache depends lmod environment-modules | awk '$1 == "Depends:" && $2 !~ /</ { print $2 }' | sort -u)
    apt_install "${needs[@]}"
    say "unpacking lmod and environment-modules into $folder/modules"
    download=$(mktemp -d)
    chmod 755 "$download"
    (cd "$download" && apt-get download -qq lmod environment-modules 2>/dev/null)
    mkdir -p "$folder/modules"
    local package
    for package in "$download"/*.deb; do dpkg-deb -x "$package" "$folder/modules"; done
    rm -rf "$download"
    touch "$folder/modules/done"
    installed=yes
}

case $what in
    base)
        system_packages
        mkdir -p "$folder"
        module_tools
        # A site's own libtorch, as LIBTORCH, is used as it is.
        if [ "${LIBTORCH:-$folder/libtorch}" = "$folder/libtorch" ]; then libtorch; else say "using LIBTORCH=$LIBTORCH"; fi
        ;;
    test)
        pip_install tests/setup/requirements-test.txt
        python_headers
        ;;
    *) fail "unknown set: $what" ;;
esac
[ $installed = yes ] || say "$what: nothing to install"
