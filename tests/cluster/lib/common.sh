# shellcheck shell=bash disable=SC2034,SC2154 # names from common.sh and the caller
# What both forms share: where the state lies, locks, processes told apart by pid and start time, waiting.

# A caller on a hardened system may have /usr/sbin missing, where slurmctld, slurmd and munged live.
PATH=$PATH:/usr/sbin:/sbin

repository=$(cd "${here:?}/../.." && pwd)
state=${HERD_CLUSTER:-$repository/build/cluster}
case $state in
    /*) ;;
    *) state=$PWD/$state ;;
esac

# How Slurm is told the path: a Unix socket's address has 108 bytes and slurm.conf takes no spaces, so a long path or one
# with spaces goes through a link.
short=$state
if [ ${#state} -gt 50 ] || [[ $state == *[[:space:]]* ]]; then
    short=/tmp/herd-cluster-$(id -u)-$(cksum <<<"$state" | cut -d' ' -f1)
fi

note() { echo "cluster: $*" >&2; }
fail() {
    note "$*"
    exit 1
}

# Calls FORM_NAME of the form that is up: namespaces or simple.
form() {
    local name=$1
    shift
    local which
    which=$(cat "$state/form")
    # shellcheck source=/dev/null
    . "$here/lib/$which.sh"
    "${which}_$name" "$@"
}

# One up, down, cut, … at a time.
locked() {
    mkdir -p "$state"
    exec 9>"$state/lock"
    flock -w 120 9 || fail "another cluster command holds $state/lock"
    "$@"
}

is_up() { [ -f "$state/form" ] && form alive; }
need_up() { is_up || fail "no cluster is up in $state (hint: cluster up)"; }
need_node() {
    [ -n "$1" ] || fail "name a node: $(paste -sd' ' "$state/nodes.list")"
    grep -qx -- "$1" "$state/nodes.list" || fail "no node $1; nodes are $(paste -sd' ' "$state/nodes.list")"
}

# `PID START`: the start time (clock ticks since boot) tells a process from a later one with the same number.
identity() {
    local stat
    stat=$(cat "/proc/$1/stat" 2>/dev/null) || return 1
    # The second field is a name in brackets that may hold anything; fields are counted after its last bracket.
    # shellcheck disable=SC2086
    set -- "$1" ${stat##*) }
    echo "$1 ${21}"
}

# Whether the process recorded in FILE still lives (a zombie does not).
lives() {
    local pid start now
    [ -f "$1" ] && read -r pid start <"$1" || return 1
    now=$(identity "$pid") || return 1
    [ "$now" = "$pid $start" ] && ! grep -qs '^State:.Z' "/proc/$pid/status"
}

# Ends the process recorded in FILE with SIGNAL and waits until it is gone.
finish() {
    local file=$1 signal=${2:-TERM} pid
    lives "$file" || { rm -f "$file"; return 0; }
    read -r pid _ <"$file"
    kill -s "$signal" "$pid" 2>/dev/null || true
    if ! within 10 not lives "$file"; then
        kill -s KILL "$pid" 2>/dev/null || true
        within 10 not lives "$file" || fail "process $pid ($file) does not end"
    fi
    rm -f "$file"
}

not() { ! "$@"; }

# When something is done, in seconds since the epoch: who measures what follows begins there.
moment() { echo "$1 at $(date +%s.%N)"; }

# within SECONDS CMD…: tries CMD ten times a second.
within() {
    local tries=$(($1 * 10))
    shift
    until "$@"; do
        [ $((tries--)) -gt 0 ] || return 1
        sleep 0.1
    done
}

# Starts CMD in a session of its own, away from the caller's output and lock, and records it in FILE.
daemon() {
    local file=$1 log=$2
    shift 2
    setsid "$@" </dev/null >>"$log" 2>&1 9>&- &
    identity $! >"$file" || fail "$1 ended at once; see $log"
}

all_idle() {
    local count
    count=$(form run sinfo -h -N -t idle -n "$(paste -sd, "$state/nodes.list")" -o %N 2>/dev/null | sort -u | wc -l)
    [ "$count" -eq "$(wc -l <"$state/nodes.list")" ]
}
wait_idle() {
    within 30 all_idle && return
    note "nodes are not idle after 30 s:"
    form run sinfo -N -l >&2 || true
    return 1
}
