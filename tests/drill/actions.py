"""How the faults of the drill are done: every function here takes a job and gives the moment of the fault (time.time()), or
None where nothing was done, or makes such a function. What is done to a node is written into `job.harmed`: no other may be blamed."""

import os
import random
import signal
import time
from concurrent.futures import ThreadPoolExecutor

from lab import Failed, alive, seconds, wait_for

AT = 25  # step at which faults are done


def kill(rank):
    def do(job):
        who = random.randrange(job.ranks) if rank is None else rank
        now = time.time()
        job.kill_rank(who)
        return now

    return do


def stop(*ranks):
    def do(job):
        now = time.time()
        for rank in ranks:
            job.kill_rank(rank, signal.SIGSTOP)
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


def cut(node):
    def do(job):
        job.harmed.add(node)
        job.cut = node
        return moment(job.cluster.tool("cut", node))

    return do


def moment(said):
    """When the cluster did it: the tool itself takes a few tenths of a second before."""
    return float(said.split()[-1])


def crash(*nodes):
    def do(job):
        job.crashed = list(nodes)
        job.harmed.update(nodes)
        with ThreadPoolExecutor(len(nodes)) as pool:
            return min(pool.map(lambda node: moment(job.cluster.tool("kill", node)), nodes))

    return do


def crash_then_another(job):
    """A second node crashes while the first is being replaced."""
    job.harmed.update(("herd2", "herd3"))
    now = moment(job.cluster.tool("kill", "herd2"))
    wait_for("the second attempt", 60, lambda: len(job.events("attempt_started")) >= 2, every=0.005)
    job.cluster.tool("kill", "herd3")
    job.crashed = ["herd2", "herd3"]
    return now


def bad_spare(job):
    """The spare that comes first is dead too."""
    job.harmed.update(("herd2", "herd4"))
    job.cluster.tool("kill", "herd4")
    now = moment(job.cluster.tool("kill", "herd2"))
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
        if (node := job.rank_processes().get(rank)) and not harmless(text):
            job.harmed.add(node[1])
        temporary.rename(path)
        taken = wait_for("the order is taken", 30, lambda: job.events("drill")[before:])
        return seconds(taken[0]["time"])

    return do


def harmless(text):
    """Orders that give nobody a reason to blame a node."""
    return any(f'"{kind}"' in text for kind in ("sleep_io", "nan_gradient", "slow"))


def kill_supervisor(job):
    """SIGKILL, as the kernel does when memory is short. The ranks must not notice."""
    _, pid = job.supervisor()
    now = time.time()
    os.kill(pid, signal.SIGKILL)
    wait_for("the next supervisor", 20, lambda: job.events("supervisor_restarted"))
    return now


def kill_supervisor_then_rank(job):
    """What the next supervisor knows of the ranks must do for a recovery."""
    kill_supervisor(job)
    return kill(1)(job)


def kill_rank_without_supervisor(job):
    """A rank dies in the moment in which there is no supervisor."""
    _, pid = job.supervisor()
    rank, node = job.rank_processes()[1]
    job.harmed.add(node)
    os.kill(pid, signal.SIGKILL)
    os.kill(rank, signal.SIGKILL)
    now = time.time()
    wait_for("the next supervisor", 20, lambda: job.events("supervisor_restarted"))
    return now


def kill_supervisor_then_limit(job):
    """The warning before the time limit comes while there is no supervisor."""
    _, pid = job.supervisor()
    now = time.time()
    os.kill(pid, signal.SIGKILL)
    job.cluster.run(f"scancel --batch --signal=USR1 {job.id}")
    wait_for("the requeue", 60, lambda: job.state().get("Restarts") == "1", every=0.2)
    return now


def kill_srun(job):
    """The ranks' srun dies; Slurm ends their step."""
    pid = job.srun()
    now = time.time()
    os.kill(pid, signal.SIGKILL)
    return now


def move_run_away(job):
    """The run's directory is renamed, as by a person who tidies up; the job must not hold its nodes for it."""
    now = time.time()
    job.run_dir.rename(job.run_dir.with_name("moved"))
    wait_for("the end of the job", 60, job.ended, every=0.2)
    job.ended_s = time.time() - now
    job.run_dir = job.folder / "rescue" / "run"
    return now


def rotate(job):
    """metrics.jsonl and events.jsonl are renamed while they are written to."""
    now = time.time()
    for name in ("metrics.jsonl", "events.jsonl"):
        (job.run_dir / name).rename(job.run_dir / f"{name}.1")
    wait_for("the new file", 30, (job.run_dir / "metrics.jsonl").exists)
    return now


def unfit_spare(job):
    """The program cannot be executed on the spare that comes first."""
    job.harmed.update(("herd2", "herd4"))
    broken = job.folder / "broken"
    broken.write_text("this is no program")
    broken.chmod(0o755)
    job.cluster.on("herd4", f"mount --bind {broken} {job.herd}")
    job.mounted = ("herd4", job.herd)
    now = moment(job.cluster.tool("kill", "herd2"))
    job.crashed = ["herd2"]
    return now


def replace_program(job):
    """The program's file is replaced by another while the job runs; then a rank dies, and the job is requeued."""
    path = job.herd
    new = path.with_suffix(".new")
    new.write_text("#!/bin/sh\nexit 3\n")
    new.chmod(0o755)
    new.rename(path)
    wait_for("the copy", 20, lambda: list((job.run_dir / "launch").glob("job-*.program")))
    return kill(1)(job)


def edit_config(job):
    """The configuration is edited while the job runs; then a rank dies."""
    text = job.config.read_text()
    job.config.write_text(text.replace("optim: {warmup_steps: 10}", "optim: {warmup_steps: 10, lr: 0.01}"))
    return kill(1)(job)


def crash_each_time(job):
    """The same crash in the same step, whatever attempt."""
    job.harmed.add(job.rank_processes()[1][1])
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


def slurm(text):
    def do(job):
        now = time.time()
        job.cluster.run(text.format(id=job.id))
        return now

    return do


def crash_and_boot(job):
    """No spare: the job goes back into the queue, and the node comes back meanwhile."""
    job.harmed.add("herd2")
    now = moment(job.cluster.tool("kill", "herd2"))
    wait_for("the requeue", 60, lambda: job.events("requeue"))
    job.cluster.tool("boot", "herd2")
    return now
