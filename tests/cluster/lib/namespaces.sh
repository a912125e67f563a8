# shellcheck shell=bash disable=SC2034,SC2154 # names from common.sh and the caller
# The better form: the controller and each node have network, processes, mounts, IPC and host name of their own.
#
# One process, the head, holds everything: it is the first process of a process namespace in which all nodes live, and
# the bridge that links them exists only in its network namespace. So nothing of the host changes, any number of
# clusters use the same addresses, and ending the head ends the cluster with all its networks and mounts.

subnet=10.77.0

namespaces_slurm_conf() {
    echo "SlurmctldHost=herd0($subnet.1)"
    local i=0
    while read -r node; do
        i=$((i + 1))
        echo "NodeName=$node NodeAddr=$subnet.$((i + 10)) CPUs=$CPUS State=UNKNOWN"
    done <"$state/nodes.list"
}

# Plain Ethernet between nodes, shared memory (Open MPI 4 calls it vader) inside one.
namespaces_mpi_settings() {
    echo OMPI_MCA_pml=ob1
    echo OMPI_MCA_btl=self,vader,tcp
    echo OMPI_MCA_btl_vader_single_copy_mechanism=none
}

namespaces_start() {
    {
        echo "127.0.0.1 localhost"
        echo "$subnet.1 herd0"
        awk -v net="$subnet" '{ print net "." NR + 10, $1 }' "$state/nodes.list"
    } >"$state/etc/hosts"
    daemon "$state/unshare" "$state/log/head" unshare --net --uts --ipc --mount --pid --fork --mount-proc --kill-child \
        "$here/lib/head" "$state" "$short/munge/socket" "$subnet"
    within 10 record_child "$state/unshare" "$state/head" || return 1
    if ! within 10 test -S "$short/munge/socket"; then
        note "munged does not start:"
        tail -5 "$state/log/munged" "$state/log/head" >&2
        return 1
    fi
    namespaces_start_controller || return 1
    while read -r node; do namespaces_boot "$node"; done <"$state/nodes.list"
}

# unshare forks: the namespace's first process is its child.
record_child() {
    local parent child
    read -r parent _ <"$1"
    child=$(pgrep -P "$parent") && identity "$child" >"$2"
}

namespaces_alive() { lives "$state/head"; }

# The head is the first process of the outer process namespace: the kernel ends all others with it.
namespaces_stop() {
    finish "$state/head" KILL
    finish "$state/unshare" KILL
}

# Runs CMD in the namespaces of the process recorded in FILE, in the caller's directory.
enter() {
    local file=$1 pid
    shift
    read -r pid _ <"$file"
    # shellcheck disable=SC2016
    nsenter --target "$pid" --net --uts --ipc --mount --pid -- /bin/sh -c 'cd "$1" && shift && exec "$@"' sh "$PWD" "$@"
}

namespaces_run() {
    SLURM_CONF=$state/etc/slurm.conf HERD_CLUSTER=$state enter "$state/head" "$@"
}

# Files that record nodes hold process numbers as the head sees them.
inside() { namespaces_run "$here/lib/node" "$state" "$@" 9>&-; }

namespaces_on() {
    local node=$1
    shift
    inside enter "$node" "$@"
}
namespaces_boot() { inside boot "$1" "$subnet.$(($(grep -nx -- "$1" "$state/nodes.list" | cut -d: -f1) + 10))"; }
namespaces_kill() { inside kill "$1"; }
namespaces_cut() { inside link "$1" down; }
namespaces_heal() { inside link "$1" up; }
namespaces_stop_controller() { inside stop-controller; }
namespaces_start_controller() { inside start-controller; }
