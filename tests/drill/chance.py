"""Faults at random, for the soak."""

import os
import random
import signal
import threading
import time

from actions import order


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
