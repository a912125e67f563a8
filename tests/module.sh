# shellcheck shell=bash
# Defines and exports the shell function `module`, as a site's profile does. usage: . tests/module.sh lmod|tcl [FOLDER]
# FOLDER (default build/deps/modules) holds Debian's lmod and environment-modules, unpacked by `make deps`: as packages
# the two conflict.

MODULES_FOLDER=$(cd "${2:-$(dirname "${BASH_SOURCE[0]}")/../build/deps/modules}" && pwd)
case $1 in
    lmod)
        LMOD_CMD=$(echo "$MODULES_FOLDER"/usr/share/lmod/[0-9]*/libexec/lmod)
        LMOD_DIR=$(dirname "$LMOD_CMD")
        export LMOD_CMD LMOD_DIR
        module() { eval "$("$LMOD_CMD" bash "$@")"; }
        ;;
    tcl)
        MODULES_CMD=$(echo "$MODULES_FOLDER"/usr/lib/*/modulecmd.tcl)
        export MODULES_CMD
        module() { eval "$(tclsh "$MODULES_CMD" bash "$@")"; }
        ;;
    *)
        echo "module.sh: lmod or tcl?" >&2
        return 1
        ;;
esac
export -f module
