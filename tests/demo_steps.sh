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
