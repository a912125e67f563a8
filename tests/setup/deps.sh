#!/usr/bin/env bash
# Installs what herd needs on Debian 12 and 13 or Ubuntu 24.04, and only what is missing.
# usage: deps.sh FOLDER base|test|cluster|stacks
#   base    system packages, and in FOLDER a Python environment with libtorch and cmake: enough to build and for the demo
#   cluster only Slurm and MPI: enough to run a herd that is there
#   test    into the same environment: all of PyTorch, transformers and what else the tests compare with
#   stacks  what makes trees of other Debian releases (make stacks)
# HERD_MPI=openmpi|mpich says which MPI is to be installed; without it Open MPI, or MPICH where Slurm has no PMIx plugin.
set -Eeuo pipefail
trap 'echo "deps: \`$BASH_COMMAND\` failed with status $? (deps.sh, line $LINENO)" >&2' ERR
folder=$1 what=$2
cd "$(dirname "$0")/../.."

build_packages=(
    gcc g++ make pkg-config libclang-dev           # to build; libclang is for the MPI bindings
    python3 python3-venv ca-certificates           # for the wheels below
    bible-kjv bible-kjv-text                       # real text to train on: 4.3 MB, public domain
    tzdata                                         # a table to be taught: make demo-finetune
    shellcheck
)
cluster_packages=(
    slurm-wlm slurm-wlm-basic-plugins munge        # a private Slurm
    iproute2 util-linux procps                     # its nodes: network, namespaces, processes
    libfaketime e2fsprogs                          # nodes with a wrong clock, a filesystem that blocks: make drill
    python3                                        # what does the faults
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
    command -v apt-get >/dev/null || fail "no apt-get: this installs on Debian 12 and 13 and Ubuntu 24.04 only (hint: on a cluster, build against site modules: docs/cluster.md)"
    apt_install "$@" "${cluster_packages[@]}"
    local mpi=${HERD_MPI:-openmpi}
    if [ "$mpi" = openmpi ] && ! pmix_plugin; then
        [ -z "${HERD_MPI:-}" ] || say "Open MPI is installed as HERD_MPI says; this Slurm has no PMIx plugin for it"
        mpi=${HERD_MPI:-mpich}
    fi
    case $mpi in
        openmpi) apt_install libopenmpi-dev openmpi-bin ;;
        mpich) apt_install libmpich-dev mpich ;;
        *) fail "HERD_MPI=$mpi: openmpi or mpich" ;;
    esac
}

has_plugin() { compgen -G "/usr/lib/*/slurm*/$1.so" >/dev/null; }

# Slurm's PMIx plugin, through which Open MPI's ranks find each other: in slurm-wlm-basic-plugins or, where Slurm is packaged
# in more parts, in one of its own. Without it (Slurm 26.05 of Debian's testing) MPICH's ranks find each other by pmi2.
pmix_plugin() {
    has_plugin mpi_pmix && return
    local found
    found=$(apt-cache pkgnames slurm-wlm | grep -E 'pmix|mpi-plugin' | grep -v -- -dev | sort | paste -sd' ' || true)
    # shellcheck disable=SC2086
    apt_install ${found:-slurm-wlm-plugins}
    has_plugin mpi_pmix && return
    say "Slurm $(/usr/sbin/slurmd -V | cut -d' ' -f2) here has no PMIx plugin: no /usr/lib/*/slurm*/mpi_pmix.so, nor a package that brings it (looked at: ${found:-slurm-wlm-plugins})"
    has_plugin mpi_pmi2 || fail "and no mpi_pmi2.so either: this Slurm can start no MPI ranks"
    say "MPICH is used instead, whose ranks find each other by Slurm's pmi2 plugin"
    return 1
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

# What PyTorch's wheels bring for cards alone and loads only when one is used: 1.5 GB of 5. torch.compile for a CPU needs no Triton.
without_cards() {
    local packages=("$folder"/python/lib/python3*/site-packages) before
    before=$(du -sm "${packages[0]}" | cut -f1)
    rm -rf "${packages[0]}/triton" "${packages[0]}"/nvidia/cudnn/lib/libcudnn_*.so.* \
        "${packages[0]}"/nvidia/cu*/lib/{libcusolver,libnvrtc.alt}*
    say "removed what only cards use: $((before - $(du -sm "${packages[0]}" | cut -f1))) MB (HERD_CARDS=1 keeps it)"
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
        system_packages "${build_packages[@]}"
        mkdir -p "$folder"
        module_tools
        # A site's own libtorch, as LIBTORCH, is used as it is.
        if [ "${LIBTORCH:-$folder/libtorch}" = "$folder/libtorch" ]; then libtorch; else say "using LIBTORCH=$LIBTORCH"; fi
        ;;
    cluster) system_packages ;;
    stacks) apt_install debootstrap ;;
    test)
        pip_install tests/setup/requirements-test.txt
        if [ -z "${HERD_CARDS:-}" ] && ! compgen -G '/dev/nvidia[0-9]*' >/dev/null && compgen -G "$folder/python/lib/python3*/site-packages/triton" >/dev/null; then
            without_cards
        fi
        python_headers
        ;;
    *) fail "unknown set: $what" ;;
esac
[ $installed = yes ] || say "$what: nothing to install"
