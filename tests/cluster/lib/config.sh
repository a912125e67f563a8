# shellcheck shell=bash disable=SC2034,SC2154 # names from common.sh and the caller
# The options of `up` and the files Slurm reads: slurm.conf, cgroup.conf, task prolog, munge key, hosts.

NODES=2 CPUS=4 DECLARE='' CRED_EXPIRE='' FORM=''
SETTINGS=() SKEWS=()

parse_up() {
    while [ $# -gt 0 ]; do
        local option=$1
        case $option in
            --nodes | --cpus | --declare | --cred-expire | --set | --form | --skew)
                [ $# -ge 2 ] || fail "$option needs a value"
                ;;
            *) fail "unknown option of up: $option" ;;
        esac
        case $option in
            --nodes) NODES=$(positive "$@") ;;
            --cpus) CPUS=$(positive "$@") ;;
            --declare) DECLARE=$2 ;;
            --cred-expire) CRED_EXPIRE=$(positive "$@") ;;
            --set) [[ $2 == ?*=* ]] || fail "--set wants KEY=VALUE, not '$2'"; SETTINGS+=("$2") ;;
            --form) FORM=$2 ;;
            --skew) [[ $2 =~ ^[a-z0-9]+=[-+][0-9]+$ ]] || fail "--skew wants NODE=+SECONDS or NODE=-SECONDS, not '$2'"; SKEWS+=("$2") ;;
        esac
        shift 2
    done
    [ "$NODES" -le 200 ] || fail "--nodes $NODES: at most 200"
    for tool in slurmctld slurmd munged sinfo flock setsid; do
        command -v "$tool" >/dev/null || fail "$tool is not installed (hint: make deps)"
    done
    if [ ${#SKEWS[@]} -gt 0 ] && [ -z "$(faketime_library)" ]; then
        fail "--skew needs libfaketime (hint: make deps)"
    fi
    choose_form
}

# A node's clock is wrong for its slurmd and for all tasks on it. Only the wall clock: what measures time spans is right on
# a real node too.
faketime_library() { compgen -G '/usr/lib/*/faketime/libfaketimeMT.so.1' | head -1; }
skew_of() {
    printf 'LD_PRELOAD=%s\n' "$(faketime_library)"
    printf '%s\n' "FAKETIME=$1" FAKETIME_DONT_FAKE_MONOTONIC=1 NO_FAKE_STAT=1
}

positive() {
    [[ $2 =~ ^[1-9][0-9]*$ ]] || fail "$1 wants a whole number above 0, not '$2'"
    echo "$2"
}

choose_form() {
    case $FORM in
        namespaces | simple) ;;
        '')
            FORM=namespaces
            # What the better form needs, tried as a whole: namespaces, a bridge and a mount.
            if ! command -v ip nsenter >/dev/null || ! unshare --net --uts --ipc --mount --pid --fork --mount-proc \
                sh -c 'ip link add name trial type bridge && mount -t tmpfs tmpfs /mnt' 2>/dev/null; then
                FORM=simple
                note "this host does not let us make namespaces (not root, or an unprivileged container)."
                note "Falling back to the simple form: all nodes share loopback and /dev/shm; cut and heal do not work."
            fi
            ;;
        *) fail "--form $FORM: namespaces or simple" ;;
    esac
}

write_configuration() {
    [ "$short" = "$state" ] || ln -sfn "$state" "$short"
    mkdir -p "$state"/{ctld,munge,nodes,log,etc}
    chmod 755 "$state" "$state/munge" "$state/nodes"
    seq -f 'herd%.0f' 1 "$NODES" >"$state/nodes.list"
    while read -r node; do
        mkdir -p "$state/nodes/$node/spool" "$state/nodes/$node/tmp"
        chmod 1777 "$state/nodes/$node/tmp"
    done <"$state/nodes.list"
    local skew
    for skew in ${SKEWS[@]+"${SKEWS[@]}"}; do
        grep -qx -- "${skew%%=*}" "$state/nodes.list" || fail "--skew $skew: no such node"
        skew_of "${skew#*=}" >"$state/nodes/${skew%%=*}/clock"
    done
    (umask 077 && head -c 1024 /dev/urandom >"$state/munge/key")
    write_task_prolog
    # Slurm 22.05 looks for a cgroup filesystem even where no plugin uses one; 23.11 can be told not to.
    local cgroup=cgroup/v1
    [ "$(slurmd -V | grep -o '[0-9]*' | head -1)" -ge 23 ] && cgroup=disabled
    echo "CgroupPlugin=$cgroup" >"$state/etc/cgroup.conf"
    : >"$state/etc/gres.conf"
    write_slurm_conf >"$state/etc/slurm.conf"
}

# What the modules or profiles of a site would set for every task: here, how the nodes are linked.
write_task_prolog() {
    {
        echo '#!/bin/sh'
        echo "echo \"export TMPDIR=$short/nodes/\$SLURMD_NODENAME/tmp\""
        local setting
        while read -r setting; do
            echo "echo \"export ${setting%%=*}=\${${setting%%=*}:-${setting#*=}}\""
        done < <(form mpi_settings)
        echo "sed 's/^/export /' $short/nodes/\$SLURMD_NODENAME/clock 2>/dev/null"
        echo 'exit 0'
    } >"$state/etc/task_prolog"
    chmod 755 "$state/etc/task_prolog"
}

write_slurm_conf() {
    local user auth="socket=$short/munge/socket"
    user=$(id -un)
    [ -z "$CRED_EXPIRE" ] || auth+=",cred_expire=$CRED_EXPIRE"
    # shellcheck disable=SC2054 # commas belong to the values
    local -A keys=(
        [ClusterName]=herd
        [SlurmUser]=$user [SlurmdUser]=$user
        [AuthType]=auth/munge [AuthInfo]=$auth
        [StateSaveLocation]=$short/ctld
        [SlurmctldLogFile]=$short/log/slurmctld [SlurmctldPidFile]=$short/ctld/pid
        [SlurmdSpoolDir]=$short/nodes/%n/spool [TmpFS]=$short/nodes/%n/tmp
        [SlurmdLogFile]=$short/log/slurmd-%n [SlurmdPidFile]=$short/nodes/%n/slurmd.pid
        [SlurmdParameters]=config_overrides
        [ProctrackType]=proctrack/linuxproc [TaskPlugin]=task/none [JobAcctGatherType]=jobacct_gather/none
        [TaskProlog]=$short/etc/task_prolog
        # No default MPI, as on many sites: an srun without --mpi=pmix must be noticed by herd.
        [MpiDefault]=none
        [SelectType]=select/cons_tres [SelectTypeParameters]=CR_CPU [GresTypes]=gpu
        [SchedulerParameters]=batch_sched_delay=0,sched_interval=2,bf_interval=2
        [ReturnToService]=2 [KillWait]=5 [MailProg]=/bin/true
    )
    # Nodes on paper are cloud nodes that are powered down; nothing ever resumes them.
    [ -z "$DECLARE" ] || keys+=([SuspendProgram]=/bin/true [ResumeProgram]=/bin/true [SuspendTime]=3600
        [SuspendExcNodes]=$(paste -sd, "$state/nodes.list"))
    local setting key
    for setting in ${SETTINGS[@]+"${SETTINGS[@]}"}; do keys[${setting%%=*}]=${setting#*=}; done
    echo "# Written by tests/cluster/cluster up."
    for key in $(printf '%s\n' "${!keys[@]}" | sort); do echo "$key=${keys[$key]}"; done
    form slurm_conf
    if [ -n "$DECLARE" ]; then
        echo "NodeName=$DECLARE CPUs=128 RealMemory=2000000 Gres=gpu:8 State=CLOUD"
    fi
    echo "PartitionName=batch Nodes=ALL Default=YES MaxTime=INFINITE State=UP"
}
