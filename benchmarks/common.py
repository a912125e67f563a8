"""What the benchmarks share: starting a run and watching the machine meanwhile, herd's configuration and data, and the
results file. Standard library only, so that any Python can drive a benchmark."""

import array
import datetime
import functools
import importlib.metadata
import json
import os
import platform
import random
import re
import shlex
import shutil
import signal
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "train.json"
SCRATCH = ROOT / "build" / "bench"

# The shape of issue 2, and one that a smoke test finishes in seconds.
SHAPE = dict(
    vocab_size=32000,
    hidden_size=768,
    intermediate_size=2048,
    num_hidden_layers=8,
    num_attention_heads=12,
    num_key_value_heads=4,
)
TINY_SHAPE = dict(SHAPE, vocab_size=512, hidden_size=96, intermediate_size=256, num_hidden_layers=2)


# A benchmark that is told to end takes its run with it.
signal.signal(signal.SIGTERM, lambda *_: sys.exit("bench: terminated"))


class Failed(Exception):
    """A run ended with an error or did not report what it should."""


# --- running -----------------------------------------------------------------------------------------------------------


def environment():
    """The caller's environment without what would tune one side only: thread counts, allocators, herd's switches."""
    tuning = re.compile(r"^(OMP|MKL|KMP|GOMP|OPENBLAS|MALLOC|TORCH|ATEN|DNNL|ONEDNN|HERD)_|^LD_PRELOAD$|^GLIBC_TUNABLES$")
    env = {k: v for k, v in os.environ.items() if not tuning.match(k)}
    env["HF_HUB_OFFLINE"] = "1"
    if os.geteuid() == 0:  # Open MPI refuses root unless told twice
        env.update(OMPI_ALLOW_RUN_AS_ROOT="1", OMPI_ALLOW_RUN_AS_ROOT_CONFIRM="1")
        env.update(PRTE_ALLOW_RUN_AS_ROOT="1", PRTE_ALLOW_RUN_AS_ROOT_CONFIRM="1")
    return env


def busy_seconds():
    """CPU seconds that all processes of the machine have used, and that its hypervisor has taken away."""
    fields = [int(x) for x in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]]
    user, nice, system, _idle, _iowait, irq, softirq, steal = fields[:8]
    hz = os.sysconf("SC_CLK_TCK")
    return (user + nice + system + irq + softirq) / hz, steal / hz


class Run:
    """A finished run: when it started (wall clock), how long it took, its memory, how much CPU others used meanwhile.

    `disturbed` is the CPU time of other processes plus the time stolen by the hypervisor, per second: 0.1 is a tenth of
    one core."""

    def __init__(self, command, log, timeout=900):
        self.log = log
        log.parent.mkdir(parents=True, exist_ok=True)
        with open(log, "w") as out:
            busy, steal = busy_seconds()
            self.started = time.time()
            child = subprocess.Popen(
                [str(c) for c in command], cwd=ROOT, env=environment(), stdout=out, stderr=subprocess.STDOUT
            )
            try:
                status, usage = wait(child, timeout)
            finally:  # interrupted: leave nothing running
                if child.returncode is None:
                    child.terminate()
                    child.wait()
            self.seconds = time.time() - self.started
            busy_end, steal_end = busy_seconds()
        self.output = log.read_text(errors="replace")
        self.resident = usage.ru_maxrss * 1024  # bytes, of the largest process
        own = usage.ru_utime + usage.ru_stime
        self.disturbed = max(0.0, (busy_end - busy - own) + (steal_end - steal)) / self.seconds
        if status != 0:
            tail = "\n".join(self.output.splitlines()[-15:])
            raise Failed(f"{shlex.join(map(str, command))} ended with {status}:\n{tail}")

    def json_lines(self):
        return [json.loads(line) for line in self.output.splitlines() if line.startswith("{")]


def wait(child, timeout):
    """Exit status and resource usage of the child with all its descendants; ends it after `timeout` seconds."""
    end, stop = time.time() + timeout, child.terminate
    while True:
        pid, status, usage = os.wait4(child.pid, os.WNOHANG)
        if pid:
            child.returncode = os.waitstatus_to_exitcode(status)
            return child.returncode, usage
        if time.time() > end:
            stop()
            end, stop = time.time() + 10, child.kill
        time.sleep(0.02)


def cargo_test(name, *options, **env):
    """Runs the integration tests whose name begins so, with these variables; their exit status."""
    command = ["cargo", "test", "--release", "--locked", "--test", "it", name, "--", "--nocapture", *options]
    env = {**environment(), **{k: str(v) for k, v in env.items()}}
    return subprocess.run(command, cwd=ROOT, env=env).returncode


# --- herd --------------------------------------------------------------------------------------------------------------


def herd_binary(path):
    """The herd to measure; refuses one older than the sources, whose figures would carry the wrong commit."""
    binary = Path(path) if path else ROOT / "target" / "release" / "herd"
    if not binary.exists():
        raise Failed(f"no herd at {binary} (hint: make build, or --herd PATH)")
    newest = max(p.stat().st_mtime for p in [*ROOT.glob("src/**/*"), ROOT / "Cargo.lock"] if p.is_file())
    if not path and newest > binary.stat().st_mtime + 1:
        raise Failed("target/release/herd is older than the sources (hint: make build)")
    return binary


def mpirun(ranks):
    """Command that starts `ranks` ranks on this host; one rank starts alone."""
    if ranks == 1:
        return []
    program = shutil.which("mpirun")
    if not program:
        raise Failed("no mpirun on the PATH (hint: make deps)")
    return [program, "-n", str(ranks), "--bind-to", "none", "--oversubscribe"]


def write_tokens(path, vocabulary, count=1 << 18):
    """A Megatron indexed token file (`.bin`, `.idx`) of uniformly random u16 ids from a fixed seed, as one document."""
    if path.with_suffix(".idx").exists():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    ids = array.array("H", random.Random(1234).choices(range(vocabulary), k=count))
    if sys.byteorder == "big":
        ids.byteswap()
    path.with_suffix(".bin").write_bytes(ids.tobytes())
    index = b"MMIDIDX\0\0" + struct.pack("<QBQQ", 1, 8, 1, 2) + struct.pack("<i", count) + struct.pack("<q", 0)
    path.with_suffix(".idx").write_bytes(index + struct.pack("<qq", 0, 1))


def herd_config(run_dir, tokens, *, shape, steps, precision, ranks, threads, sequence, batch, recompute="none"):
    """A run with nothing in it but steps: no warm-up, validation, TensorBoard or sync check between them."""
    return {
        "name": "bench",
        "run_dir": str(run_dir),
        "model": {"shape": dict(shape, max_position_embeddings=8192, rope_theta=500000.0)},
        "data": {"tokenizer": "bytes", "sequence_length": sequence, "train": [{"path": str(tokens)}]},
        "batch": {"global": batch, "micro": batch // ranks},
        "train": {
            "steps": steps,
            "precision": precision,
            "device": "cpu",
            "recompute": recompute,
            "clip_norm": 1.0,
            "threads": threads,
        },
        "optim": {"lr": 3e-4, "schedule": "constant", "warmup_steps": 0, "weight_decay": 0.1},
        "parallel": {"data": ranks},
        "log": {"every": 1, "tensorboard": False, "sync_check_every": 0},
    }


def read_metrics(run_dir):
    """The training steps of a run's metrics.jsonl; `time` becomes seconds since the epoch."""
    path = run_dir / "metrics.jsonl"
    if not path.exists():
        raise Failed(f"{path} was not written")
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    steps = [line for line in lines if "loss" in line and "step" in line]
    for line in steps:
        line["time"] = datetime.datetime.fromisoformat(line["time"].replace("Z", "+00:00")).timestamp()
    return steps


# --- results -----------------------------------------------------------------------------------------------------------


def sh(*command):
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True).stdout.strip()


@functools.cache
def versions():
    # a copy without its history (tests/stacks/stack) is told
    commit = sh("git", "rev-parse", "--short=12", "HEAD") or os.environ.get("HERD_COMMIT") or "unknown"
    generated = [":!benchmarks/results", ":!docs/benchmarks.md", ":!docs/recovery.md"]
    if sh("git", "status", "--porcelain", "--untracked-files=no", "--", ".", *generated):
        commit += "+changes"

    def installed(package):
        try:
            return importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            return "absent"

    mpi = (sh("mpirun", "--version").splitlines() or ["unknown"])[0]
    return {
        "herd": commit,
        "libtorch": installed("torch"),
        "transformers": installed("transformers"),
        "python": platform.python_version(),
        "mpi": mpi.replace("mpirun ", "").replace("(", "").replace(")", ""),
    }


def vectors():
    """The widest vector instructions of the CPU that matter for matrix products."""
    flags = re.search(r"^flags\s*:\s*(.*)$", Path("/proc/cpuinfo").read_text(), re.M)
    names = {"amx_bf16": "AMX", "avx512_bf16": "AVX-512 bf16", "avx512f": "AVX-512", "avx2": "AVX2"}
    found = set(flags[1].split()) if flags else set()
    return next((name for flag, name in names.items() if flag in found), "none of x86-64's")


def machine():
    cpu = re.search(r"^model name\s*:\s*(.*)$", Path("/proc/cpuinfo").read_text(), re.M)
    family = re.search(r"^cpu family\s*:\s*(\d+)$", Path("/proc/cpuinfo").read_text(), re.M)
    kib = int(re.search(r"^MemTotal:\s*(\d+)", Path("/proc/meminfo").read_text(), re.M)[1])
    model = cpu[1] if cpu else platform.machine()
    return {
        "cpu": f"{model} (family {family[1]})" if family else model,
        "vectors": vectors(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(kib / 2**20, 1),
        "kernel": platform.release(),
    }


def command_line():
    """How this benchmark was started, from the repository's root: where that and other files lie is nobody's business."""
    script = Path(sys.argv[0]).resolve().relative_to(ROOT)
    inside = (a.replace(f"{ROOT}/", "") for a in sys.argv[1:])
    return shlex.join(["python", str(script), *(Path(a).name if a.startswith("/") else a for a in inside)])


def entry(name, value, unit, peer, **more):
    """One figure with everything needed to judge it. `more` holds its spread, the absolute values and the goal."""
    return {
        "name": name,
        "value": round(value, 4),
        "unit": unit,
        "peer": peer,
        "command": command_line(),
        "versions": versions(),
        "machine": machine(),
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        **more,
    }


def read_results(path=RESULTS):
    return json.loads(path.read_text()) if path.exists() else []


def cpu_kind(entry):
    """Figures of one kind of CPU say nothing about another."""
    return entry["machine"]["cpu"]


def write_results(entries, path=RESULTS):
    """Replaces the entries of the same name and keeps the others; of training speed also those of other kinds of CPU."""
    by_cpu = path.name == RESULTS.name
    merged = {(e["name"], by_cpu and cpu_kind(e)): e for e in [*read_results(path), *entries]}
    replace(path, json.dumps(list(merged.values()), indent=2) + "\n")


def replace(path, text):
    """Writes a file so that readers see the old one or the new one, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile("w", dir=path.parent, prefix=f".{path.name}-", delete=False) as f:
        f.write(text)
        f.flush()
        os.fsync(f.fileno())
    os.chmod(f.name, 0o644)
    os.replace(f.name, path)


def between(page, begin, end, lines):
    """A page with other lines between two marks that stand in it."""
    head, rest = page.split(begin)
    return "\n".join([head + begin, "", *lines, "", end + rest.split(end)[1]])


def spread(values):
    """Median, smallest and largest of a list."""
    return statistics.median(values), min(values), max(values)
