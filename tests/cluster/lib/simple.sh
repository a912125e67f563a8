# shellcheck shell=bash disable=SC2034,SC2154 # names from common.sh and the caller
# The form for hosts without namespaces: several slurmd on one host, one port each, everything on loopback.
#
# Nodes share the host's network, name and /dev/shm, so a link cannot be cut; a kill ends the node's processes only.
# They are found by what their environment says, never by name.

simple_slurm_conf() {
    local host port
    host=$(hostname)
    port=$(free_ports $((NODES + 1)))
    echo "SlurmctldHost=$host(127.0.0.1)"
    echo "SlurmctldPort=$port"
    while read -r node; do
        port=$((port + 1))
        echo "NodeName=$node NodeHostname=$host NodeAddr=127.0.0.1 Port=$port CPUs=$CPUS State=UNKNOWN"
    done <"$state/nodes.list"
}

# Loopback only: ranks on different "nodes" would take each other's shared memory for their own.
simple_mpi_settings() {
    echo OMPI_MCA_pml=ob1
    echo OMPI_MCA_btl=self,tcp
    echo OMPI_MCA_btl_tcp_if_include=lo
}

# The first of N neighbouring TCP ports on which nobody listens.
free_ports() {
    local n=$1 first=$((20000 + $$ % 10000)) used
    used=$(ss -Htln | awk '{ sub(/.*:/, "", $4); print $4 }')
    while seq "$first" $((first + n - 1)) | grep -qxF -- "$used"; do first=$((first + n)); done
    echo "$first"
}

simple_start() {
    daemon "$state/munge/process" "$state/log/munged.out" munged --force --foreground --key-file="$state/munge/key" \
        --socket="$short/munge/socket" --pid-file="$state/munge/pid" --log-file="$state/log/munged" \
        --seed-file="$state/munge/seed"
    within 10 test -S "$short/munge/socket" || return 1
    simple_start_controller || return 1
    while read -r node; do simple_boot "$node"; done <"$state/nodes.list"
}

simple_alive() { lives "$state/ctld/process" || lives "$state/munge/process"; }

simple_stop() {
    while read -r node; do finish "$state/nodes/$node/process"; done <"$state/nodes.list"
    finish "$state/ctld/process"
    kill_matching "SLURM_CONF=$state/etc/slurm.conf"
    finish "$state/munge/process"
}

simple_run() { SLURM_CONF=$state/etc/slurm.conf HERD_CLUSTER=$state "$@"; }

simple_on() {
    lives "$state/nodes/$1/process" || fail "node $1 is not up (hint: cluster boot $1)"
    SLURMD_NODENAME=$1 simple_run "${@:2}"
}

simple_boot() {
    ! lives "$state/nodes/$1/process" || fail "node $1 is already up"
    rm -rf "${state:?}/nodes/$1"/{tmp,spool}/* # see lib/init
    local clock=()
    [ ! -f "$state/nodes/$1/clock" ] || mapfile -t clock <"$state/nodes/$1/clock"
    SLURM_CONF=$state/etc/slurm.conf HERD_NODE=$state/$1 \
        daemon "$state/nodes/$1/process" "$state/log/slurmd-$1.out" env ${clock[@]+"${clock[@]}"} slurmd -D -N "$1"
}

# Step daemons inherit slurmd's environment; tasks have the job's.
simple_kill() {
    moment "$1 crashes"
    finish "$state/nodes/$1/process" KILL
    kill_matching "HERD_NODE=$state/$1"
    kill_matching "SLURM_CONF=$state/etc/slurm.conf" "SLURMD_NODENAME=$1"
}

# Ends every process whose environment holds all of the given entries, until none is left; never ourselves.
kill_matching() {
    local round found dir entry
    for round in 1 2 3 4 5; do
        found=''
        for dir in /proc/[0-9]*; do
            [[ ${dir#/proc/} != "$$" && ${dir#/proc/} != "$BASHPID" ]] || continue
            for entry in "$@"; do
                tr '\0' '\n' 2>/dev/null <"$dir/environ" | grep -qxF -- "$entry" || continue 2
            done
            found=yes
            kill -s KILL "${dir#/proc/}" 2>/dev/null || true
        done
        [ -n "$found" ] || return 0
        sleep "0.$round"
    done
}

simple_cut() { fail "the simple form has no links to cut: all nodes share this host's loopback"; }
simple_heal() { simple_cut; }
simple_stop_controller() { finish "$state/ctld/process"; }
simple_start_controller() {
    ! lives "$state/ctld/process" || fail "the controller is already up"
    daemon "$state/ctld/process" "$state/log/slurmctld.out" slurmctld -D -f "$state/etc/slurm.conf"
    within 20 simple_run scontrol ping >/dev/null 2>&1 || return 1
}
