"""What PyTorch and safetensors need to save and load the same bytes as herd, on two ranks, and what the disk itself can do.

    python benchmarks/peers/save_torch.py --bytes 1200000000 --dir build/bench/save

Every rank holds half of the bytes as fp32 tensors of one block each. Every way saves once before, untimed, and that is
removed, as in the middle of a run that keeps its newest checkpoint; `--pause` seconds are between the two. A line of JSON for
every way: name, seconds, bytes. Saves end when the bytes are on disk (fsync of every file): the time that a crash may no longer undo. Loads start with the
files out of the page cache. Neither begins at once: between two saves of a run lie steps, and a load is what a new process
does, when a host that lends memory has taken the free pages back."""

import argparse
import json
import mmap
import os
import shutil
import sys
import time
from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
import torch.multiprocessing as mp
from safetensors.torch import load_file, save_file

PIECE = 16 << 20
BLOCK = 2 << 20  # of a write around the page cache: of 1 to 32 MiB among the fastest


def sync(folder):
    for path in sorted(Path(folder).rglob("*")):
        if path.is_file():
            fd = os.open(path, os.O_RDONLY)
            os.fsync(fd)
            os.close(fd)


def forget(folder):
    """Takes a folder's files out of the page cache."""
    for path in Path(folder).rglob("*"):
        if path.is_file():
            fd = os.open(path, os.O_RDONLY)
            os.fsync(fd)
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(fd)


def rank_main(rank, args):
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(args.port), GLOO_SOCKET_IFNAME="lo")
    dist.init_process_group("gloo", rank=rank, world_size=args.ranks)
    torch.set_num_threads(1)
    count = max(1, args.bytes // args.ranks // PIECE)
    tensors = {f"rank{rank}.{i}": torch.full([PIECE // 4], float(rank + i)) for i in range(count)}
    total = count * args.ranks * PIECE
    root = Path(args.dir)

    def timed(name, act, folder, load=False):
        dist.barrier()
        if load and rank == 0:
            forget(folder)
            time.sleep(args.pause)
        dist.barrier()
        began = time.monotonic()
        act()
        if not load:
            sync(folder) if rank == 0 else None
        dist.barrier()
        if rank == 0:
            print(json.dumps({"name": name, "seconds": time.monotonic() - began, "bytes": total}), flush=True)

    def fresh(name):
        folder = root / name
        if rank == 0:
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
        dist.barrier()
        return folder

    def raw_write(folder):
        with open(folder / f"raw-{rank}", "wb", buffering=0) as f:
            for t in tensors.values():
                f.write(t.numpy().data)
            os.fsync(f.fileno())

    def direct_write(folder):
        """Around the page cache: what the disk takes."""
        fd = os.open(folder / f"direct-{rank}", os.O_WRONLY | os.O_CREAT | os.O_DIRECT)
        for t in tensors.values():
            held = memoryview(t.numpy()).cast("B")
            for at in range(0, PIECE, BLOCK):
                room[:] = held[at : at + BLOCK]
                if os.write(fd, room) != BLOCK:
                    raise OSError("a short write")
        os.fsync(fd)
        os.close(fd)

    room = mmap.mmap(-1, BLOCK)  # aligned

    def raw_read(folder):
        buffer = torch.empty([PIECE // 4])
        with open(folder / f"raw-{rank}", "rb", buffering=0) as f:
            while f.readinto(buffer.numpy().data):
                pass

    def dcp_save(folder):
        dcp.save(tensors, checkpoint_id=str(folder))

    def wait(future):
        future.result()

    ways = {
        "raw": (raw_write, raw_read),
        "direct": (direct_write, None),
        "dcp": (
            dcp_save,
            lambda f: dcp.load({k: torch.empty_like(t) for k, t in tensors.items()}, checkpoint_id=str(f)),
        ),
        # Right after another: the page cache has just been used and is still there.
        "dcp_at_once": (dcp_save, None),
        "dcp_async": (lambda f: wait(dcp.async_save(tensors, checkpoint_id=str(f))), None),
        "torch_save": (
            lambda f: torch.save(tensors, f / f"rank-{rank}.pt"),
            lambda f: torch.load(f / f"rank-{rank}.pt"),
        ),
        "safetensors": (
            lambda f: save_file(tensors, f / f"rank-{rank}.safetensors"),
            lambda f: load_file(f / f"rank-{rank}.safetensors"),
        ),
    }
    for name in args.ways.split(","):
        save, load = ways[name]
        before = fresh(f"{name}-before")
        save(before)
        dist.barrier()
        if rank == 0:
            sync(before)
            shutil.rmtree(before)
            time.sleep(args.pause * (name != "dcp_at_once"))
        folder = fresh(name)
        timed(f"{name}_save", lambda: save(folder), folder)
        if name == "direct":
            timed("direct_over_save", lambda: save(folder), folder)
        if load:
            timed(f"{name}_load", lambda: load(folder), folder, load=True)
        dist.barrier()
        if rank == 0:
            shutil.rmtree(folder)
    dist.destroy_process_group()


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--bytes", type=int, required=True)
    parser.add_argument("--dir", required=True)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--port", type=int, default=29641)
    parser.add_argument("--pause", type=float, default=4.0, help="seconds before a save and, after the page cache was emptied, before a load")
    parser.add_argument("--ways", default="raw,direct,dcp,dcp_at_once,dcp_async,torch_save,safetensors")
    args = parser.parse_args()
    mp.spawn(rank_main, args=(args,), nprocs=args.ranks)


if __name__ == "__main__":
    sys.exit(main())
