"""Every fault of the drill, and what must come of it. `CASES` is the table; benchmarks/recovery.py runs it."""

from dataclasses import dataclass

from actions import (
    bad_spare,
    corrupt_and_kill,
    crash,
    crash_and_boot,
    crash_each_time,
    crash_then_another,
    cut,
    edit_config,
    freeze,
    freeze_too_long,
    kill,
    kill_rank_without_supervisor,
    kill_srun,
    kill_supervisor,
    kill_supervisor_then_limit,
    kill_supervisor_then_rank,
    move_run_away,
    order,
    pause,
    preempt,
    replace_program,
    rotate,
    skewed,
    slurm,
    stop,
    stop_then_continue,
    time_limit,
    unfit_spare,
)
from checks import (
    first_program,
    flushed,
    from_disk,
    goes_on_elsewhere,
    heal,
    heal_first,
    in_two_files,
    is_gone,
    left_meanwhile,
    not_requeued,
    one_attempt,
    rejected,
    requeued,
    said_and_ignored,
    second_spare,
    shifts_seen,
    shrunk,
    skipped,
    stopped_once,
    taken_over,
    three_tries,
)

INTERVAL, MISSES = 1.0, 3


@dataclass
class Case:
    name: str
    do: object  # job -> the moment of the fault (time.time()), or None where nothing was done
    # what must come of it
    kind: str = "death"  # death: known within a second; silent: after the misses; none: nobody may be given up
    faults: tuple = (1, 1)  # fewest and most faults that may be noted
    recovers: bool = True
    bitwise: bool = True
    lost: int | None = 1  # most steps done again; None: not limited
    spare: bool = True  # counts for recover_with_spare_s_max
    exit: int = 0
    state: str = "COMPLETED"
    nodes: int = 6  # of the cluster
    ask: int = 0  # of the job, where fewer
    ranks: int = 3
    steps: int = 400
    sets: tuple = ()
    sbatch: tuple = ()
    cluster: tuple = ("--cred-expire", "5", "--set", "SlurmdTimeout=15")
    own_program: bool = False  # a copy of herd, which may be replaced
    disk: bool = False  # on a filesystem of its own, which can be made to block
    after: object = None  # job, notes -> None: further checks; adds words to notes


SKEWED = ("--set", "SlurmdTimeout=15", "--skew", "herd2=+60", "--skew", "herd3=-60")
PREEMPTIBLE = ("--cred-expire", "5", "--set", "SlurmdTimeout=15", "--set", "PreemptType=preempt/partition_prio",
               "--set", "PreemptMode=REQUEUE")


REASONS = {"death": 1.0, "silent": INTERVAL * MISSES + 1.0, "stuck": None, "none": None, "queue": None}

CASES = [
    Case("SIGKILL of a random rank", kill(None)),
    Case("SIGKILL of rank 0", kill(0)),
    Case("SIGSTOP of a rank", stop(1), kind="silent"),
    Case("SIGSTOP of rank 0 (the monitor)", stop(0), kind="silent"),
    Case("SIGSTOP for two intervals, then SIGCONT", pause(1, 2 * INTERVAL), kind="none", faults=(0, 0), recovers=False),
    Case("SIGSTOP, SIGCONT after the eviction", stop_then_continue, kind="silent", after=is_gone),
    Case("SIGSTOP of both ranks that hold a slice", stop(1, 2), kind="silent", after=flushed),
    Case("link of a node cut", cut("herd2"), kind="silent", after=heal),
    Case("node crashed", crash("herd3"), kind="silent"),
    Case("first node (supervisor) crashed", crash("herd1"), kind="silent", state="CANCELLED", after=taken_over),
    Case("the supervisor killed", kill_supervisor, kind="none", faults=(0, 0), recovers=False, after=one_attempt),
    Case("the supervisor killed, then a rank", kill_supervisor_then_rank),
    Case("a rank killed while there is no supervisor", kill_rank_without_supervisor, kind="stuck"),
    Case("the supervisor killed, then the time limit", kill_supervisor_then_limit, kind="queue", faults=(0, 0), recovers=False, lost=0,
         spare=False, after=stopped_once),
    Case("srun of the ranks killed", kill_srun),
    Case("link of the first node cut; its supervisor lives on", cut("herd1"), kind="silent", faults=(1, 2), exit=32, state="CANCELLED", steps=800,
         after=heal_first),
    Case("two nodes crashed at once, every slice is left somewhere", crash("herd2", "herd4"), kind="silent", faults=(1, 2), ranks=4),
    Case("two nodes crashed at once, every holder of a slice", crash("herd2", "herd3"), kind="silent", faults=(1, 2), lost=None, after=from_disk),
    Case("second node crashed during recovery", crash_then_another, kind="silent", faults=(1, 3), lost=None, spare=False),
    Case("node crashed, and its spare is dead too", bad_spare, kind="silent"),
    Case("node crashed, and the program does not start on its spare", unfit_spare, kind="silent", faults=(2, 2), spare=False, after=second_spare),
    Case("configuration edited meanwhile, a rank killed", edit_config, after=said_and_ignored),
    Case("the program replaced meanwhile, a rank killed", replace_program, own_program=True, after=first_program),
    Case("metrics and events rotated away", rotate, kind="none", faults=(0, 0), recovers=False, after=in_two_files),
    Case("the run directory moved away", move_run_away, kind="queue", faults=(0, 0), recovers=False, bitwise=False, spare=False, exit=25,
         state="FAILED", sets=("launch.rescue_dir={folder}/rescue",), after=goes_on_elsewhere),
    Case("no spare left: requeue", crash_and_boot, kind="queue", nodes=3, recovers=False, spare=False, after=requeued(1)),
    Case("no spare left: fewer replicas", crash("herd2"), kind="silent", nodes=3, bitwise=False, spare=False,
         sets=("launch.shrink=true", "batch={global: 12, micro: 2}"), after=shrunk),
    Case("a rank skips a collective", order('{"kind": "skip_collective"}'), kind="stuck", spare=False),
    Case("a collective stalls for 2 s", order('{"kind": "stall_collective", "seconds": 2}'), kind="none", faults=(0, 0), recovers=False),
    Case("a collective stalls for good", order('{"kind": "stall_collective", "seconds": 1000}'), kind="stuck", spare=False),
    Case("writing metrics blocks for 10 s", order('{"kind": "sleep_io", "seconds": 10}', rank=0), kind="none", faults=(0, 0), recovers=False),
    Case("the filesystem blocks for a minute", freeze(60), kind="none", faults=(0, 0), recovers=False, disk=True),
    Case("the filesystem blocks for 40 s, liveness.storage_s is 5", freeze_too_long, kind="stuck", spare=False, disk=True,
         sets=("liveness.storage_s=5",), after=left_meanwhile),
    Case("wall clocks of two nodes off by +60 s and -60 s, a rank killed", skewed, cluster=SKEWED, steps=3000, after=shifts_seen),
    Case("a rank is slow for 20 steps", order('{"kind": "slow", "seconds": 0.3, "steps": 20}'), kind="none", faults=(0, 0), recovers=False),
    Case("NaN in a gradient", order('{"kind": "nan_gradient"}'), kind="none", faults=(0, 0), recovers=False, bitwise=False, after=skipped),
    Case("newest checkpoint damaged, rank 0 killed", corrupt_and_kill, lost=None,
         sets=("checkpoint.snapshot_every=0", "checkpoint.background=false"), after=rejected),
    Case("the same crash in the same step", crash_each_time, kind="none", faults=(3, 3), recovers=False, bitwise=False,
         exit=40, state="FAILED", spare=False, after=three_tries),
    Case("time limit (USR1 to the batch script)", slurm("scancel --batch --signal=USR1 {id}"), kind="queue", faults=(0, 0),
         recovers=False, lost=0, spare=False, after=requeued(1)),
    Case("TERM to every process of the job", slurm("scancel --full --signal=TERM {id}"), kind="queue", faults=(0, 1), recovers=False,
         spare=False, after=requeued(1)),
    Case("time limit of two minutes", time_limit, kind="queue", faults=(0, 0), recovers=False, lost=0, spare=False,
         sbatch=("--time=2", "--signal=B:USR1@60"), after=stopped_once),
    Case("preempted by a job of a higher partition", preempt, kind="queue", faults=(0, 0), recovers=False, lost=0, spare=False,
         cluster=PREEMPTIBLE, after=stopped_once),
    Case("scontrol requeue by hand", slurm("scontrol requeue {id}"), kind="queue", faults=(0, 0), recovers=False, lost=0, spare=False,
         after=requeued(1)),
    Case("scancel", slurm("scancel {id}"), kind="queue", faults=(0, 0), recovers=False, bitwise=False, exit=75, state="CANCELLED", spare=False,
         after=not_requeued),
]


# what `herd drill` can do, with its options; the NaN last, since its step is left out of the run
COMMANDS = [
    ("kill-rank", ()),
    ("stop-rank", ("--rank", "1")),
    ("pause-rank", ("--seconds", str(2 * INTERVAL))),
    ("kill-node", ()),
    ("stop-node", ("--rank", "1")),
    ("monitor", ()),
    ("skip-collective", ()),
    ("stall-collective", ("--seconds", "2")),
    ("slow", ("--seconds", "0.2")),
    ("block-io", ("--seconds", "8")),
    ("corrupt-checkpoint", ()),
    ("fill-disk", ()),
    ("time-limit", ()),
    ("requeue", ()),
    ("nan-gradient", ()),
]
