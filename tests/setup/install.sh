#!/usr/bin/env bash
# Installs herd and what belongs to it. usage: install.sh PREFIX [BINARY], PREFIX absolute
set -euo pipefail
prefix=$1 binary=${2:-target/release/herd}
cd "$(dirname "$0")/../.."
version=$(sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -1)

install -D -m 755 "$binary" "$prefix/bin/herd"
install -d "$prefix/share/herd/slurm" "$prefix/share/herd/configs" "$prefix/share/man/man1"
install -m 644 slurm/*.sbatch "$prefix/share/herd/slurm"
install -m 644 configs/*.yaml configs/grafana.json "$prefix/share/herd/configs"

"$prefix/bin/herd" man "$prefix/share/man/man1"
install -d "$prefix"/share/{bash-completion/completions,zsh/site-functions,fish/vendor_completions.d}
"$prefix/bin/herd" completions bash >"$prefix/share/bash-completion/completions/herd"
"$prefix/bin/herd" completions zsh >"$prefix/share/zsh/site-functions/_herd"
"$prefix/bin/herd" completions fish >"$prefix/share/fish/vendor_completions.d/herd.fish"

# Lmod prefers the .lua file; environment-modules passes over it, since it does not begin with #%Module.
install -d "$prefix/share/modulefiles/herd"
fill() { sed -e "s|@PREFIX@|$prefix|g" -e "s|@VERSION@|$version|g" "$1" >"$2"; }
fill modules/herd.lua "$prefix/share/modulefiles/herd/$version.lua"
fill modules/herd.tcl "$prefix/share/modulefiles/herd/$version"

# The binary names libtorch's folder; it must be found from the new place too.
if ldd "$prefix/bin/herd" | grep 'not found' >&2; then
    echo "install: herd does not find the libraries above (hint: was LIBTORCH moved since the build?)" >&2
    exit 1
fi
echo "installed herd $version in $prefix (hint: module use $prefix/share/modulefiles && module load herd)"
