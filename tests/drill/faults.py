"""Every fault of the drill: how it is done, and what must come of it. `CASES` is the table; benchmarks/recovery.py runs it."""

import os
import random
import signal
import threading
import time
from dataclasses import dataclass

from lab import Failed, processes, seconds, wait_for

INTERVAL, MISSES = 1.0, 3
AT = 25  # step at which faults are done


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
    disk: bool = False  # on a filesystem of its own, which can be made to block
    after: object = None  # job, notes -> None: further checks; adds words to notes


def kill(rank):
    def do(job):
        who = random.randrange(job.ranks) if rank is None else rank
        now = time.time()
        job.kill_rank(who)
        return now

    return do


def stop(rank):
    def do(job):
        now = time.time()
        job.stopped = job.kill_rank(rank, signal.SIGSTOP)[0]
        return now

    return do


def pause(rank, length):
    """SIGSTOP, and SIGCONT after `length` seconds."""

    def do(job):
        now = time.time()
        pid, _ = job.kill_rank(rank, signal.SIGSTOP)
        time.sleep(length)
        os.kill(pid, signal.SIGCONT)
        return now

    return do


def stop_then_continue(job):
    """SIGSTOP; the rank wakes up after others have been started in its place."""
    now = time.time()
    pid, _ = job.kill_rank(1, signal.SIGSTOP)
    wait_for("recovery", 60, lambda: job.events("recovered"))
    job.woken = pid
    try:
        os.kill(pid, signal.SIGCONT)
    except ProcessLookupError:
        pass
    return now


def is_gone(job, notes):
    wait_for("the process that woke up ends", 10, lambda: not alive(job.woken))
    notes.append("the old process is gone, and wrote nothing")


def cut(node):
    def do(job):
        now = time.time()
        job.cluster.tool("cut", node)
        job.cut = node
        return now

    return do


def heal(job, notes):
    """The old ranks on the node that was cut off are gone, by themselves, before it is back."""
    wait_for("ranks on the node that was cut off end", 30, lambda: not [p for p in rank_nodes(job) if p == job.cut])
    job.cluster.tool("heal", job.cut)
    notes.append("ranks that were cut off left by themselves")


def rank_nodes(job):
    return [env.get("SLURMD_NODENAME") for _, env in processes([str(job.config), " train "]) if "HERD_ATTEMPT" in env]


def crash(*nodes):
    def do(job):
        job.crashed = list(nodes)
        now = time.time()
        killers = [threading.Thread(target=job.cluster.tool, args=("kill", node)) for node in nodes]
        for k in killers:
            k.start()
        for k in killers:
            k.join()
        return now

    return do


def crash_then_another(job):
    """A second node crashes while the first is being replaced."""
    now = time.time()
    job.cluster.tool("kill", "herd2")
    wait_for("the second attempt", 60, lambda: len(job.events("attempt_started")) >= 2, every=0.005)
    job.cluster.tool("kill", "herd3")
    job.crashed = ["herd2", "herd3"]
    return now


def bad_spare(job):
    """The spare that comes first is dead too."""
    job.cluster.tool("kill", "herd4")
    now = time.time()
    job.cluster.tool("kill", "herd2")
    job.crashed = ["herd2", "herd4"]
    return now


def order(text, rank=1):
    """An order of `herd drill`'s to a rank."""

    def do(job):
        path = job.run_dir / "drill" / f"rank-{rank:05}.json"
        path.parent.mkdir(exist_ok=True)
        temporary = path.with_suffix(".tmp")
        temporary.write_text(text)
        before = len(job.events("drill"))
        temporary.rename(path)
        taken = wait_for("the order is taken", 30, lambda: job.events("drill")[before:])
        return seconds(taken[0]["time"])

    return do


def crash_each_time(job):
    """The same crash in the same step, whatever attempt."""
    for tries in range(3):
        path = job.run_dir / "drill" / "rank-00001.json"
        path.parent.mkdir(exist_ok=True)
        path.write_text('{"kind": "exit", "code": 1, "at_step": %d}' % (AT + 5))
        wait_for("a fault", 60, lambda n=tries: len(job.events("fault")) > n)
    return None


def corrupt_and_kill(job):
    # Halfway between two saves, so that the damaged one is still the newest when the ranks start again.
    wait_for("the middle of an interval", 60, lambda: 8 <= job.step() % 20 <= 14)
    newest = max((job.run_dir / "checkpoints").glob("step-*"))
    file = max(newest.iterdir(), key=lambda p: p.stat().st_size)
    with open(file, "r+b") as f:
        f.seek(file.stat().st_size // 2)
        byte = f.read(1)
        f.seek(-1, 1)
        f.write(bytes([byte[0] ^ 0xFF]))
    return kill(0)(job)


def freeze(seconds):
    """Whoever writes to the filesystem of the run, and only whoever writes, hangs in the kernel for that long."""

    def do(job):
        now = time.time()
        with job.disk.frozen():
            time.sleep(seconds)
        return now

    return do


def freeze_too_long(job):
    """Longer than liveness.storage_s: ranks that do not hang in the kernel leave while the filesystem still blocks."""
    now = time.time()
    with job.disk.frozen():
        first = job.rank_processes()
        left = lambda: [r for r, (pid, _) in first.items() if not alive(pid)]  # noqa: E731
        job.left_s = None
        end = time.monotonic() + 40
        while time.monotonic() < end:
            if job.left_s is None and len(left()) >= len(first) - 1:
                job.left_s = time.time() - now
            time.sleep(0.1)
    return now


def left_meanwhile(job, notes):
    if job.left_s is None:
        raise Failed("ranks stayed while the filesystem blocked")
    notes.append(f"the others had left {job.left_s:.1f} s after it began to block")


def alive(pid):
    """Whether a process runs: a zombie does not."""
    try:
        with open(f"/proc/{pid}/stat") as f:
            return f.read().rsplit(")", 1)[1].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


SKEWED = ("--set", "SlurmdTimeout=15", "--skew", "herd2=+60", "--skew", "herd3=-60")


def skewed(job):
    """Clocks of two nodes are wrong: shown by what their ranks write, then ten quiet seconds, then a death."""
    job.shifts = []
    for rank in (1, 2):
        now = time.time()
        job.shifts.append(order('{"kind": "slow", "seconds": 0.01, "steps": 1}', rank)(job) - now)
    time.sleep(10)
    if job.events("fault"):
        raise Failed(f"a false verdict: {job.events('fault')[0]['fact']}")
    return kill(1)(job)


def shifts_seen(job, notes):
    a, b = job.shifts
    if not (50 < a < 70 and -70 < b < -50):
        raise Failed(f"clocks were off by {a:.1f} and {b:.1f} s, not by ±60 s")
    notes.append(f"clocks off by {a:+.0f} and {b:+.0f} s, no false verdict in 10 s")


PREEMPTIBLE = ("--cred-expire", "5", "--set", "SlurmdTimeout=15", "--set", "PreemptType=preempt/partition_prio",
               "--set", "PreemptMode=REQUEUE")


def preempt(job):
    """A job of a partition with a higher priority needs the nodes."""
    job.cluster.run("scontrol show partition urgent >/dev/null 2>&1 || scontrol create PartitionName=urgent Nodes=ALL PriorityTier=10; "
                    "scontrol update PartitionName=batch GraceTime=30")
    now = time.time()
    job.cluster.run(f"sbatch -p urgent -N{job.nodes} -o /dev/null --exclusive --wrap 'sleep 3'")
    wait_for("the preemption", 60, lambda: job.state().get("Restarts") == "1")
    return now


def time_limit(job):
    """Two minutes are all it has; the warning comes a minute before, or up to a minute earlier."""
    order('{"kind": "slow", "seconds": 0.5, "steps": 1000000}')(job)
    wait_for("the warning", 130, lambda: job.events("asked_to_stop"), every=0.2)
    wait_for("the requeue", 60, lambda: job.state().get("Restarts") == "1", every=0.2)
    return None


def stopped_once(job, notes):
    """Saved at the step at which it stopped, requeued once."""
    stopped, resumed = job.events("stopped"), job.events("resume")
    if len(stopped) != 1 or resumed[-1]["step"] != stopped[0]["step"]:
        raise Failed(f"stopped at {[e['step'] for e in stopped]}, went on from {[e['step'] for e in resumed]}")
    notes.append(f"saved at step {stopped[0]['step']}")
    requeued(1)(job, notes)


def from_disk(job, notes):
    """A slice was nowhere in memory any more."""
    resumed, mended = job.events("resume")[-1], job.events("recovered")[-1]
    # the whole checkpoint, or the one part of its step that no memory holds
    if resumed["step"] % 20 or not resumed["tiers"]["disk"]:
        raise Failed(f"went on from {resumed}")
    notes.append(f"back to the checkpoint on disk of step {resumed['step']}; said: {mended['steps_lost']} steps are done again")


def slurm(text):
    def do(job):
        now = time.time()
        job.cluster.run(text.format(id=job.id))
        return now

    return do


def crash_and_boot(job):
    """No spare: the job goes back into the queue, and the node comes back meanwhile."""
    now = time.time()
    job.cluster.tool("kill", "herd2")
    wait_for("the requeue", 60, lambda: job.events("requeue"))
    job.cluster.tool("boot", "herd2")
    return now


def heal_first(job, notes):
    """The link is back while the deputy's attempt runs: the old supervisor must not disturb it, nor end the job."""
    job.cluster.tool("heal", job.cut)
    job.cut = None
    before = job.step()
    job.reach(before + 100)
    taken_over(job, notes, running=True)
    notes.append("the link came back meanwhile, and the old supervisor kept still")


def taken_over(job, notes, running=False):
    """The supervisor's deputy has gone on in its place, in the same job, and has ended the job that lost its batch script."""
    found = job.events("taken_over")
    if len(found) != 1 or found[0]["lost"] != "herd1" or not (running or job.events("finished")):
        raise Failed(f"taken over: {found}")
    if job.events("requeue") or int(job.state()["Restarts"]):
        raise Failed("it was requeued")
    notes.append(f"the deputy on {found[0]['by']} took over")


def requeued(count):
    def look(job, notes):
        restarts = int(job.state()["Restarts"])
        if restarts != count:
            raise Failed(f"{restarts} requeues, not {count}")
        records = job.json("attempts.json")["attempts"]
        notes.append(f"requeued {restarts}×, {len(records)} attempts on the books")

    return look


def shrunk(job, notes):
    worlds = [e["world"] for e in job.events("attempt_started")]
    notes.append(f"worlds {worlds}")
    if worlds[-1] >= worlds[0]:
        raise Failed(f"the world did not shrink: {worlds}")


def three_tries(job, notes):
    n = len(job.events("attempt_started"))
    notes.append(f"{n} tries, then stopped; not requeued")
    if n != 3 or job.events("requeue"):
        raise Failed(f"{n} tries, {len(job.events('requeue'))} requeues")


def not_requeued(job, notes):
    time.sleep(3)
    if job.events("requeue") or job.state()["JobState"] != "CANCELLED":
        raise Failed(f"{job.state()['JobState']}, requeues: {job.events('requeue')}")
    notes.append("not requeued")


def skipped(job, notes):
    found = job.events("skipped_step")
    if len(found) != 1:
        raise Failed(f"{len(found)} skipped steps")
    notes.append(f"step {found[0]['step']} skipped, not applied")


def rejected(job, notes):
    if not (found := job.events("checkpoint_rejected")):
        raise Failed("a damaged checkpoint was not noticed")
    notes.append(f"{found[0]['path'].rsplit('/', 1)[-1]} passed over, said aloud")


REASONS = {"death": 1.0, "silent": INTERVAL * MISSES + 1.0, "stuck": None, "none": None, "queue": None}

CASES = [
    Case("SIGKILL of a random rank", kill(None)),
    Case("SIGKILL of rank 0", kill(0)),
    Case("SIGSTOP of a rank", stop(1), kind="silent"),
    Case("SIGSTOP of rank 0 (the monitor)", stop(0), kind="silent"),
    Case("SIGSTOP for two intervals, then SIGCONT", pause(1, 2 * INTERVAL), kind="none", faults=(0, 0), recovers=False),
    Case("SIGSTOP, SIGCONT after the eviction", stop_then_continue, kind="silent", after=is_gone),
    Case("link of a node cut", cut("herd2"), kind="silent", after=heal),
    Case("node crashed", crash("herd3"), kind="silent"),
    Case("first node (supervisor) crashed", crash("herd1"), kind="silent", state="CANCELLED", after=taken_over),
    Case("link of the first node cut; its supervisor lives on", cut("herd1"), kind="silent", faults=(1, 2), exit=32, state="CANCELLED", steps=800,
         after=heal_first),
    Case("two nodes crashed at once, every slice is left somewhere", crash("herd2", "herd4"), kind="silent", faults=(1, 2), ranks=4),
    Case("two nodes crashed at once, every holder of a slice", crash("herd2", "herd3"), kind="silent", faults=(1, 2), lost=None, after=from_disk),
    Case("second node crashed during recovery", crash_then_another, kind="silent", faults=(1, 3), lost=None, spare=False),
    Case("node crashed, and its spare is dead too", bad_spare, kind="silent"),
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
    Case("wall clocks of two nodes off by +60 s and -60 s, a rank killed", skewed, cluster=SKEWED, steps=1500, after=shifts_seen),
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


class Random:
    """Random faults for the soak, of kinds that are mended within seconds."""

    def __init__(self, seed):
        self.random = random.Random(seed)
        self.dead = {}  # node -> when it may be booted

    KINDS = {"kill": 8, "stop": 3, "exit": 3, "node": 2, "nan": 0, "pause": 2, "skip": 1}

    def pick(self):
        kinds = [k for k, n in self.KINDS.items() for _ in range(n)]
        return self.random.choice(kinds)

    def do(self, kind, job):
        """Does it; what was done, and whether a restart must follow."""
        rank = self.random.randrange(job.ranks)
        if kind == "kill":
            job.kill_rank(rank)
        elif kind == "stop":
            job.kill_rank(rank, signal.SIGSTOP)
        elif kind == "pause":
            pid, _ = job.kill_rank(rank, signal.SIGSTOP)
            threading.Timer(job.interval, os.kill, (pid, signal.SIGCONT)).start()
            time.sleep(1.5 * job.interval)
            return kind, False
        elif kind == "exit":
            order('{"kind": "exit", "code": 1}', rank)(job)
        elif kind == "skip":
            order('{"kind": "skip_collective"}', rank)(job)
        elif kind == "node":
            # not the first: the supervisor's loss is a matter of minutes, and a case of its own
            nodes = sorted({n for _, n in job.rank_processes().values()} - {"herd1"})
            if not nodes or self.dead:
                job.kill_rank(rank)
                return "kill", True
            node = self.random.choice(nodes)
            job.cluster.tool("kill", node)
            self.dead[node] = time.time() + 2
        return kind, True

    def tend(self, cluster):
        """Dead nodes come back."""
        for node, due in list(self.dead.items()):
            if time.time() > due:
                cluster.tool("boot", node)
                del self.dead[node]
