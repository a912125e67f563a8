"""A private Slurm with a small training job on it, for faults to be done to. Standard library only."""

import contextlib
import datetime
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT / "benchmarks"))

TOOL = ROOT / "tests" / "cluster" / "cluster"

CONFIG = """\
name: drill
run_dir: {run_dir}
model:
  shape: {{vocab_size: 258, hidden_size: 32, intermediate_size: 64, num_hidden_layers: 2, num_attention_heads: 4,
    num_key_value_heads: 2}}
data: {{tokenizer: bytes, sequence_length: {sequence}, train: [{{path: {corpus}}}]}}
batch: {{global: 12, micro: {micro}}}
train: {{steps: {steps}, precision: fp32, device: cpu, threads: 1}}
optim: {{warmup_steps: 10}}
parallel: {{data: {ranks}}}
checkpoint: {{every: {every}, keep: 3, snapshot_every: 1}}
log: {{tensorboard: false, sync_check_every: 0}}
liveness: {{interval_s: {interval}, misses: 3, grace_s: 2, progress_floor_s: 5, first_step_s: 60}}
launch: {{start_timeout_s: 30, node_failures: 1000000, window_attempts: 1000000, max_attempts: 1000000, node_pause_s: 5}}
"""


class Failed(Exception):
    """Something did not come about."""


def wait_for(what, limit, look, every=0.02):
    """The first true value of look(), within limit seconds."""
    end = time.monotonic() + limit
    while True:
        found = look()
        if found:
            return found
        if time.monotonic() > end:
            raise Failed(f"{what}: not within {limit} s")
        time.sleep(every)


class Cluster:
    """tests/cluster/cluster in a directory of its own."""

    def __init__(self, path, nodes, *options):
        self.path, self.nodes = Path(path), nodes
        self.path.mkdir(parents=True, exist_ok=True)
        self.tool("up", "--nodes", str(nodes), *options)

    def command(self, verb, *args):
        env = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM_", "PMIX_"))}
        env["HERD_CLUSTER"] = str(self.path)
        return [str(TOOL), verb, *args], env

    def tool(self, verb, *args, check=True):
        line, env = self.command(verb, *args)
        done = subprocess.run(line, env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True)
        if check and done.returncode != 0:
            raise Failed(f"cluster {verb} {args}: {done.returncode}\n{done.stdout}{done.stderr}")
        return done.stdout.strip()

    def run(self, text, check=True):
        return self.tool("run", "bash", "-c", text, check=check)

    def on(self, node, text, check=True):
        return self.tool("on", node, "bash", "-c", text, check=check)

    def down(self):
        self.tool("down", check=False)


class Disk:
    """A small filesystem in a file, for runs whose storage is to block. Mounted before a cluster starts, whose nodes see it."""

    SIZE = 512 << 20

    def __init__(self, path):
        self.path, self.image = Path(path), Path(path).with_suffix(".img")
        self.path.mkdir(parents=True)
        with open(self.image, "wb") as f:
            f.truncate(self.SIZE)
        self.call("mkfs.ext4", "-q", "-F", "-m", "0", self.image)
        # noatime: reading must not write
        self.call("mount", "-o", "loop,noatime", self.image, self.path)

    def call(self, *line):
        done = subprocess.run([str(x) for x in line], capture_output=True, text=True)
        if done.returncode != 0:
            raise Failed(f"{line[0]}: {done.stderr.strip()}")

    @contextlib.contextmanager
    def frozen(self):
        self.call("fsfreeze", "-f", self.path)
        try:
            yield
        finally:
            self.call("fsfreeze", "-u", self.path)

    def remove(self):
        """After the cluster has ended, whose nodes hold the mount too."""
        wait_for("the disk is free", 10, lambda: subprocess.run(["umount", str(self.path)], capture_output=True).returncode == 0, every=0.2)
        self.image.unlink()
        self.path.rmdir()


def processes(words):
    """(pid, environment) of processes of this host whose command line holds all of words."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            if all(w in line for w in words):
                pairs = (entry / "environ").read_bytes().decode(errors="replace").split("\0")
                found.append((int(entry.name), dict(p.split("=", 1) for p in pairs if "=" in p)))
        except OSError:
            continue
    return found


class Job:
    """A training run in a folder of its own, and the Slurm job that runs it through a demo-like batch script."""

    def __init__(self, cluster, folder, herd, *, steps, ranks, every=20, micro=None, sequence=64, interval=1.0, sets=(), sbatch=(), nodes=None):
        self.cluster, self.folder, self.herd = cluster, Path(folder), herd
        self.ranks, self.steps, self.sets, self.sbatch = ranks, steps, list(sets), list(sbatch)
        self.nodes, self.interval = nodes or cluster.nodes, interval
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)
        self.run_dir = self.folder / "run"
        corpus = self.folder.parent / "corpus"
        if not corpus.with_suffix(".idx").exists():
            text = " ".join(f"{i} sheep and {i * 7 % 31} goats went over the hill." for i in range(4000))
            (self.folder.parent / "text.txt").write_text(text)
            line = [herd, "data", "tokenize", "--tokenizer", "bytes", "--output", corpus, self.folder.parent / "text.txt"]
            subprocess.run([str(x) for x in line], check=True, capture_output=True)
        self.config = self.folder / "config.yaml"
        micro = micro or max(1, 12 // ranks)
        self.config.write_text(
            CONFIG.format(
                run_dir=self.run_dir, corpus=corpus, steps=steps, ranks=ranks, every=every, micro=micro, sequence=sequence, interval=interval
            )
        )
        self.log = self.folder / "job.log"
        self.id = None
        self.harmed = set()  # nodes to which something was done, and no others may be blamed

    def submit(self):
        script = self.folder / "job.sh"
        sets = "".join(f" --set '{s}'".replace("{folder}", str(self.folder)) for s in self.sets)
        script.write_text(f"#!/bin/bash\nexport HERD_LOG=info\nexec {self.herd} launch {self.config}{sets}\n")
        line = ["sbatch", "--parsable", f"-N{self.nodes}", "--ntasks-per-node=1", "--no-kill", "--requeue", "--open-mode=append"]
        line += [*self.sbatch, "-o", str(self.log), str(script)]
        self.id = self.cluster.tool("run", *line)
        return self

    def again(self, *sets):
        """Another job with the same configuration and these changes, submitted."""
        job = Job.__new__(Job)
        job.__dict__.update(self.__dict__, sets=[*self.sets, *sets], log=self.folder / "again.log", harmed=set())
        return job.submit()

    def json_lines(self, name):
        """Whole lines; a file that was rotated away comes first."""
        text = b""
        for part in (f"{name}.1", name):
            with contextlib.suppress(FileNotFoundError):
                text += (self.run_dir / part).read_bytes()
        lines = []
        for line in text.split(b"\n")[:-1]:
            try:
                lines.append(json.loads(line))
            except ValueError:  # torn by a full disk
                continue
        return lines

    def json(self, name):
        return json.loads((self.run_dir / name).read_text())

    def blamed(self):
        """Nodes that the ledger counts a failure against."""
        path = self.run_dir / "ledger.json"
        return set(json.loads(path.read_text())["nodes"]) if path.exists() else set()

    def events(self, kind=None):
        return [e for e in self.json_lines("events.jsonl") if kind in (None, e["kind"])]

    def step(self):
        lines = self.json_lines("metrics.jsonl")
        return lines[-1]["step"] if lines else 0

    def losses(self):
        return [(m["step"], m["loss"]) for m in self.json_lines("metrics.jsonl")]

    def state(self):
        shown = self.cluster.run(f"scontrol show job -o {self.id}", check=False)
        return dict(w.split("=", 1) for w in shown.split() if "=" in w)

    def reach(self, step, limit=60):
        wait_for(f"step {step}", limit, lambda: self.step() >= step or self.fail_if_ended())

    def fail_if_ended(self):
        if self.ended():
            raise Failed(f"job {self.id} ended at step {self.step()}:\n{self.log.read_text()[-3000:]}")

    def ended(self):
        return self.state().get("JobState") in ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "PREEMPTED")

    def finish(self, limit=120):
        """Waits for the end of the job; its exit code."""
        wait_for("the end of the job", limit, self.ended, every=0.2)
        return int(self.state()["ExitCode"].split(":")[0])

    def rank_processes(self):
        """Living processes of the newest attempt: {rank: (pid, node)}."""
        found = {}
        for pid, env in processes([str(self.run_dir), " train "]):
            if "SLURM_PROCID" in env and "HERD_ATTEMPT" in env and env.get("SLURM_STEP_ID"):
                found.setdefault(int(env["HERD_ATTEMPT"]), {})[int(env["SLURM_PROCID"])] = (pid, env["SLURMD_NODENAME"])
        return found[max(found)] if found else {}

    def supervisor(self):
        """Processes of `herd launch`: (parent, supervisor). A standby's command line has --standby."""
        mine = [p for p, env in processes([" launch ", str(self.config)]) if "SLURM_JOB_ID" in env]
        lines = {p: Path(f"/proc/{p}/cmdline").read_bytes().decode().split("\0") for p in mine}
        parent = [p for p, line in lines.items() if line[0] == "herd-parent"]
        own = [p for p, line in lines.items() if line[0] == str(self.herd) and not any(w.startswith("--standby") for w in line)]
        if len(parent) != 1 or len(own) != 1:
            raise Failed(f"one parent and one supervisor are wanted: {lines}")
        return parent[0], own[0]

    def srun(self):
        """The process of the ranks' srun."""
        found = [p for p, env in processes(["srun", " train ", str(self.run_dir)]) if "HERD_ATTEMPT" in env and "SLURM_PROCID" not in env]
        if not found:
            raise Failed("no srun of the ranks")
        return min(found)

    def kill_rank(self, rank, sig=signal.SIGKILL):
        pid, node = self.rank_processes()[rank]
        self.harmed.add(node)
        os.kill(pid, sig)
        return pid, node


def seconds(stamp):
    return datetime.datetime.fromisoformat(stamp.replace("Z", "+00:00")).timestamp()


def alive(pid):
    """Whether a process runs: a zombie does not."""
    try:
        with open(f"/proc/{pid}/stat") as f:
            return f.read().rsplit(")", 1)[1].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False
