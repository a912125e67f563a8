"""How often ranks die in MPI_Init by the way in which Slurm's PMIx plugin joins nodes (SLURM_PMIX_FENCE), with one rank that comes late.

    python tests/stacks/fence.py --starts 40 --rows OUT.jsonl

A private Slurm of four nodes; eight ranks of a small C program, which sends to every other rank as soon as MPI_Init returns, as
herd's ranks do. One line a way: {fence, starts, failed, words}. Standard library only.
"""

import argparse
import json
import os
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT / "tests" / "drill"))
import lab  # noqa: E402

NODES, RANKS = 4, 8
WAYS = ("ring", "tree", "mixed")
# How late one rank comes, in seconds: less than a start takes, and more.
LATE = (0.0, 0.05, 0.2, 0.5)
PROGRAM = r"""
#include <mpi.h>
#include <stdio.h>
int main(int argc, char **argv) {
    int rank, size, got = 0;
    MPI_Init(&argc, &argv);
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    MPI_Comm_size(MPI_COMM_WORLD, &size);
    MPI_Request sent[64];
    for (int i = 0; i < size; i++) MPI_Isend(&rank, 1, MPI_INT, i, 7, MPI_COMM_WORLD, &sent[i]);
    for (int i = 0; i < size; i++) {
        int from;
        MPI_Recv(&from, 1, MPI_INT, i, 7, MPI_COMM_WORLD, MPI_STATUS_IGNORE);
        got += from == i;
    }
    MPI_Waitall(size, sent, MPI_STATUSES_IGNORE);
    if (rank == 0) printf("met %d of %d\n", got, size);
    MPI_Finalize();
    return got != size;
}
"""


def build(folder):
    source, program = folder / "meet.c", folder / "meet"
    source.write_text(PROGRAM)
    subprocess.run([os.environ.get("MPICC", "mpicc"), "-O1", "-o", program, source], check=True)
    return program


def start(cluster, program, plugin, fence, late, rank):
    """What went wrong in one start; None where nothing did."""
    script = f'[ "$SLURM_PROCID" != {rank} ] || sleep {late}; exec {shlex.quote(str(program))}'
    line, env = cluster.command("run", "srun", f"--mpi={plugin}", f"-N{NODES}", f"-n{RANKS}", "--overcommit", "--time=1", "bash", "-c", script)
    try:
        out = subprocess.run(line, env={**env, "SLURM_PMIX_FENCE": fence}, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=90)
    except subprocess.TimeoutExpired:
        return "not over after 90 s"
    if out.returncode == 0 and f"met {RANKS} of {RANKS}" in out.stdout:
        return None
    return " ".join((out.stderr or out.stdout).split())[:200] or f"srun left with {out.returncode}"


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--starts", type=int, default=40, help="of each way (default 40)")
    p.add_argument("--plugin", default="pmix")
    p.add_argument("--rows", type=Path, required=True)
    args = p.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="herd-fence-", dir=ROOT / "build"))
    program = build(folder)
    cluster = lab.Cluster(folder / "cluster", NODES)
    rows = []
    try:
        for fence in WAYS:
            words = [start(cluster, program, args.plugin, fence, LATE[i % len(LATE)], i % RANKS) for i in range(args.starts)]
            bad = [w for w in words if w]
            rows.append({"fence": fence, "starts": args.starts, "failed": len(bad), "words": sorted(set(bad))[:3]})
            print(f"{fence}: {len(bad)} of {args.starts} starts failed", flush=True)
    finally:
        cluster.tool("down")
    args.rows.write_text("".join(json.dumps(row) + "\n" for row in rows))


if __name__ == "__main__":
    main()
