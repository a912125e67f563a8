"""Every fault on the private Slurm, done to real jobs and measured; then a soak of random faults.

    make drill                                            # everything: an hour on two cores
    python benchmarks/recovery.py --only 'node crashed'   # cases whose name matches; nothing is recorded
    python benchmarks/recovery.py --part 2/3 --stages cases   # a part of the cases; the table keeps the other rows
    python benchmarks/recovery.py --soak 20 --stages soak

Writes benchmarks/results/recovery.json and the tables in docs/recovery.md. Times are from the moment of the fault to the
line in events.jsonl, by one clock: all nodes are on this host.
"""

import argparse
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

import common
import recovery_tables as tables
import report

sys.path.insert(0, str(common.ROOT / "tests" / "drill"))
import actions  # noqa: E402
import chance  # noqa: E402
import checks  # noqa: E402
import faults  # noqa: E402
import lab  # noqa: E402

FOLDER = common.ROOT / "build" / "drill"


class Drill:
    def __init__(self, args):
        self.args = args
        self.herd = common.herd_binary(args.herd)
        self.cluster, self.form, self.disk = None, None, None
        self.references = {}
        self.folder = args.folder.resolve()
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)

    def up(self, nodes, options=faults.Case.cluster, disk=False):
        """A fresh cluster, or the one that is up with all its nodes."""
        if self.cluster and self.form != (nodes, options, disk):
            self.down()
        if not self.cluster:
            self.disk = lab.Disk(self.folder / "disk") if disk else None
            self.form = (nodes, options, disk)
            self.cluster = lab.Cluster(self.folder / "cluster", nodes, *options)
        return self.cluster

    def down(self):
        if self.cluster:
            self.cluster.down()
            self.cluster = None
        if self.disk:
            self.disk.remove()
            self.disk = None

    def job(self, name, case, **more):
        keys = dict(steps=case.steps, ranks=case.ranks, sets=case.sets, sbatch=case.sbatch, nodes=case.ask or case.nodes)
        folder = self.disk.path / name if self.disk else self.folder / name
        job = lab.Job(self.cluster, folder, self.herd, **{**keys, **more})
        job.disk, job.cut, job.crashed = self.disk, None, []
        if case.own_program:
            job.herd = Path(shutil.copy(self.herd, job.folder / "herd"))
        return job

    def reference(self, case):
        """Losses of the undisturbed run."""
        plain = tuple(s for s in case.sets if not s.startswith(("checkpoint.", "launch.", "liveness.")))
        key = (case.steps, case.ranks, plain)
        if key not in self.references:
            job = self.job(f"reference-{len(self.references)}", case, sbatch=()).submit()
            if job.finish(900) != 0 or job.step() != case.steps:
                raise lab.Failed(f"the undisturbed run ended at step {job.step()}:\n{job.log.read_text()[-2000:]}")
            self.references[key] = job.losses()
        return self.references[key]

    def case(self, number, case):
        row = tables.Row(case)
        job = None
        try:
            self.up(case.nodes, case.cluster, case.disk)
            reference = self.reference(case)
            job = self.job(f"case-{number:02}", case).submit()
            job.reference = reference
            job.reach(actions.AT)
            moment = case.do(job)
            self.judge(case, row, job, moment, reference)
        except (lab.Failed, OSError, KeyError) as e:
            row.failure = " ".join(str(e).split())[:300]
        finally:
            if job:
                self.clean(job)
            if row.failure:
                self.down()  # what it left behind is not the next one's fault
        print(row.line(), flush=True)
        return row

    def judge(self, case, row, job, moment, reference):
        if case.recovers:
            done = lambda: [m for m in job.events("recovered") if not moment or lab.seconds(m["time"]) > moment]  # noqa: E731
            lab.wait_for("recovery", 120, lambda: done() or job.fail_if_ended())
        if case.after in checks.WHILE_IT_RUNS:
            case.after(job, row.notes)
        code = job.finish(180)
        row.wrong = sorted(job.blamed() - job.harmed)
        if row.wrong:
            raise lab.Failed(f"{', '.join(row.wrong)} blamed, and harmed were {', '.join(sorted(job.harmed)) or 'none'}")
        if case.kind in ("death", "silent") and not job.harmed <= job.blamed():
            raise lab.Failed(f"{', '.join(sorted(job.harmed - job.blamed()))} harmed, and blamed are {', '.join(sorted(job.blamed())) or 'none'}")
        state = job.state()["JobState"]
        if (code, state) != (case.exit, case.state):
            raise lab.Failed(f"the job ended {state} with {code}, not {case.state} with {case.exit}: {job.log.read_text()[-1500:]}")
        strays = [f for f in job.events("fault") if "Segmentation fault" in f["fact"]]
        if len(job.events("fault")) <= case.faults[1]:
            strays = []  # how a healthy rank of MPICH may die when another stands still: the fault itself
        found, mended = [f for f in job.events("fault") if f not in strays], job.events("recovered")
        if strays:  # docs/limits.md, Recovery
            row.notes.append(f"{len(strays)} start{'s'[: len(strays) > 1]} died in MPI_Init and {'was' if len(strays) == 1 else 'were'} repeated")
            mended = [m for m in mended if not moment or lab.seconds(m["time"]) > moment]
        # where the supervisor itself is lost, the ranks' own verdict comes first
        first = (job.events("verdict") if job.events("taken_over") else found) or found
        if not case.faults[0] <= len(found) <= case.faults[1]:
            raise lab.Failed(f"{len(found)} faults noted: {[f['fact'] for f in found]}")
        if found and moment:
            row.detect = lab.seconds(first[0]["time"]) - moment
            row.notes.insert(0, first[0]["fact"])
        if mended and moment:
            row.recover = lab.seconds(mended[-1]["time"]) - moment
            row.lost = sum(m["steps_lost"] for m in mended)
        if case.exit == 0:
            steps = [s for s, _ in job.losses()]
            if steps != list(range(1, case.steps + 1)):
                raise lab.Failed(f"steps {steps[:3]}…{steps[-3:]}, {len(steps)} of {case.steps}")
        if case.bitwise:
            row.equal = job.losses() == reference
            if not row.equal:
                raise lab.Failed("the losses differ from those of the undisturbed run")
        if case.lost is not None and row.lost is not None and row.lost > case.lost:
            raise lab.Failed(f"{row.lost} steps were done again, at most {case.lost} were to be")
        limit = faults.REASONS.get(case.kind)
        if limit and row.detect is not None and row.detect > limit + self.args.slack:
            raise lab.Failed(f"noticed after {row.detect:.2f} s, limit {limit} s")
        if case.after and case.after not in checks.WHILE_IT_RUNS:
            case.after(job, row.notes)
        verify = subprocess.run([str(self.herd), "checkpoint", "verify", str(job.run_dir)], capture_output=True, text=True)
        if verify.returncode != 0:
            raise lab.Failed(f"damaged checkpoints: {verify.stdout}{verify.stderr}")
        leftovers(job, self.cluster)

    def clean(self, job):
        """All nodes up and idle, nothing of the job left."""
        if not job.ended():
            self.cluster.run(f"scancel {job.id}", check=False)
        if mounted := getattr(job, "mounted", None):
            self.cluster.on(mounted[0], f"umount {mounted[1]}", check=False)
        for node in job.crashed:
            if node not in (job.cut or ""):
                self.cluster.tool("boot", node, check=False)
        if job.cut:
            self.cluster.tool("heal", job.cut, check=False)
        try:
            idle = lambda: self.cluster.run("sinfo -h -t idle -o %D", check=False) == str(self.cluster.nodes)  # noqa: E731
            lab.wait_for("idle nodes", 60, idle, every=0.2)
        except lab.Failed:
            self.down()  # a node that does not come back: the next case gets a new cluster

    # --- herd drill ---

    def commands(self):
        """Every fault that `herd drill` knows, done by it to one live job: its outcomes, and how the job ended."""
        self.up(4, disk=True)
        case = faults.Case("herd drill", None, nodes=4, steps=1_000_000)
        job = self.job("command", case).submit()
        outcomes = []
        try:
            for kind, options in faults.COMMANDS:
                job.reach(job.step() + 25, 120)
                line = ["drill", str(job.run_dir), kind, "--json", "--patience", "120", *options]
                done = self.cluster.tool("run", str(self.herd), *line, check=False)
                try:
                    outcomes.append(json.loads(done.splitlines()[-1]))
                except (ValueError, IndexError):
                    outcomes.append(dict(kind=kind, as_expected=False, fact=done))
                print(json.dumps(outcomes[-1]), flush=True)
        finally:
            self.cluster.run(f"scancel {job.id}", check=False)
            self.clean(job)
        return outcomes

    # --- soak ---

    def soak(self, count, rows):
        """`count` random faults on one job; entries for the results."""
        # a node that Slurm has noticed to be down is no longer the job's; most sites give it 300 s
        cluster = self.up(4, ("--cred-expire", "5", "--set", "SlurmdTimeout=300"))
        case = faults.Case("soak", None, ranks=3, nodes=4, steps=self.args.soak_steps)
        reference = self.reference(case)
        job = self.job("soak", case, interval=0.3, sets=("launch.no_progress=10",)).submit()
        luck, done, kinds, took = chance.Random(self.args.seed), 0, {}, {}
        job.reach(5)
        began = time.time()
        while done < count:
            luck.tend(cluster)
            kind = luck.pick()
            before, moment = len(job.events("recovered")), time.time()
            try:
                kind, restart = luck.do(kind, job)
            except (KeyError, ProcessLookupError):
                time.sleep(0.1)  # between two attempts
                continue
            done += 1
            kinds[kind] = kinds.get(kind, 0) + 1
            if restart:
                lab.wait_for(f"recovery from {kind}", 120, lambda: len(job.events("recovered")) > before or job.fail_if_ended())
                took.setdefault(kind, []).append(lab.seconds(job.events("recovered")[-1]["time"]) - moment)
            here = job.step()
            job.reach(here + luck.random.randrange(1, 6))
            if done % 20 == 0:
                print(f"  {done} faults, step {job.step()}, {time.time() - began:.0f} s", flush=True)
        while luck.dead:
            luck.tend(cluster)
            time.sleep(0.2)
        code = job.finish(1800)
        equal = code == 0 and job.losses() == reference
        status = json.loads(subprocess.run([str(self.herd), "status", "--json", str(job.run_dir)], capture_output=True, text=True).stdout)
        leftovers(job, cluster)
        self.clean(job)
        predicted = tables.model(status, kinds, tables.costs(rows))
        took = {kind: statistics.mean(t) for kind, t in took.items()}
        # with what each kind took in the soak itself: how much of the difference is in single faults
        own = tables.model(status, kinds, {**tables.costs(rows), **took})
        return dict(count=done, kinds=kinds, equal=equal, status=status, predicted=predicted, own=own, took=took, code=code)

    # --- cost when nothing fails ---

    def idle_cost(self):
        """CPU time of the liveness threads and the supervisor over the time of the steps, one probe a second."""
        case = faults.Case("idle", None, ranks=3, nodes=4, steps=1_000_000)
        self.up(4)
        job = self.job("idle", case).submit()
        job.reach(20)
        pids = [pid for pid, _ in job.rank_processes().values()]
        supervisor = [p for p, env in lab.processes([" launch ", str(job.config)]) if "SLURM_JOB_ID" in env]
        first, t0 = spent(pids, supervisor), time.time()
        time.sleep(20)
        second, t1 = spent(pids, supervisor), time.time()
        self.clean(job)
        return (second - first) / ((t1 - t0) * len(pids))


def monitor():
    """The monitor of 2,048 nodes, by the code that runs, fed with simulated reports: (share of a core, kB/s of messages)."""
    line = ["cargo", "test", "--release", "--locked", "--lib", "a_monitor_of_2048_nodes", "--", "--nocapture"]
    done = subprocess.run(line, cwd=common.ROOT, capture_output=True, text=True)
    found = re.search(r"([\d.]+)% of a core, ([\d.]+) kB/s", done.stdout)
    if not found:
        raise lab.Failed(f"{' '.join(line)}: {done.stdout[-1000:]}{done.stderr[-1000:]}")
    return float(found[1]) / 100, float(found[2])


def spent(pids, supervisor):
    """CPU seconds of all liveness threads of the ranks, and of the supervisor with its threads."""

    def cpu(stat):
        fields = Path(stat).read_text().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    total = sum(cpu(f"/proc/{p}/stat") for p in supervisor)
    for pid in pids:
        for task in Path(f"/proc/{pid}/task").iterdir():
            if (task / "comm").read_text().strip() in ("herd-liveness", "herd-reaper", "herd-mail"):
                total += cpu(task / "stat")
    return total


def leftovers(job, cluster):
    """No process of the run on any node, nothing in the nodes' shared memory."""
    lab.wait_for("the processes of the run end", 15, lambda: not lab.processes([str(job.run_dir), " train "]))
    for node in (cluster.tool("run", "cat", str(cluster.path / "nodes.list"))).split():
        # libfaketime shares its start time with its children there
        left = cluster.on(node, "ls -A /dev/shm | grep -v faketime_", check=False)
        if left:
            raise lab.Failed(f"left in /dev/shm of {node}: {left}")


STAGES = ("cases", "commands", "soak", "idle", "monitor")


def part(cases, text):
    """`K/N`: the Kth of N parts of the cases; those of one cluster stay together."""
    k, n = (int(x) for x in text.split("/"))
    cases = sorted(cases, key=lambda c: (c.disk, c.cluster != faults.Case.cluster, c.cluster, -c.nodes))
    return cases[len(cases) * (k - 1) // n : len(cases) * k // n]


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--stages", default=",".join(STAGES), help=f"of {', '.join(STAGES)}")
    p.add_argument("--only", help="cases whose name matches this regular expression, and no other stage; records nothing")
    p.add_argument("--record", action="store_true", help="with --only: put the rows into the table")
    p.add_argument("--part", default="1/1", metavar="K/N", help="the Kth of N parts of the cases")
    p.add_argument("--soak", type=int, default=200, help="random faults")
    p.add_argument("--soak-steps", type=int, default=7000)
    p.add_argument("--seed", type=int, default=5)
    p.add_argument("--slack", type=float, default=0.0, help="seconds added to limits, for a busy machine; records nothing")
    p.add_argument("--rows", type=Path, help="write what came of each case there, as JSON lines, and record nothing else")
    p.add_argument("--folder", type=Path, default=FOLDER, help="for runs and their logs; emptied first")
    p.add_argument("--herd", help="binary (default target/release/herd)")
    args = p.parse_args()
    stages = ["cases"] if args.only is not None else args.stages.split(",")
    drill = Drill(args)
    rows = tables.rows_before()

    def keep(table=(), commands=None, soak=None, idle=None, large=None):
        """Writes down what one stage has found: the next may fail."""
        found = tables.entries(table, commands, soak, idle, large)
        for e in found:
            print(f"{e['name']:32}{e['value']:10.4g}  {e['unit']}", flush=True)
        if args.rows:
            return
        if (args.record or not args.only) and not args.slack:
            common.write_results(found, tables.RESULTS)
            tables.write_page(table, commands, soak)
            report.write()

    good = True
    try:
        if "cases" in stages:
            # few clusters: cases of one kind together
            new = []
            for number, case in enumerate(part(faults.CASES, args.part)):
                if re.search(args.only or "", case.name):
                    new.append(drill.case(number, case))
                    if args.rows:
                        with open(args.rows, "a") as f:
                            f.write(json.dumps({"kind": case.kind, "spare": case.spare, **new[-1].keep()}) + "\n")
            rows.update((r.case.name, r) for r in new)
            good &= not any(r.failure for r in new)
            keep(table=[rows[c.name] for c in faults.CASES if c.name in rows])
        if "commands" in stages:
            commands = drill.commands()
            good &= all(c["as_expected"] for c in commands)
            keep(commands=commands)
        if "soak" in stages:
            soak = drill.soak(args.soak, rows.values())
            good &= soak["equal"]
            keep(soak=soak)
        if "idle" in stages:
            keep(idle=drill.idle_cost())
        if "monitor" in stages:
            keep(large=monitor())
    finally:
        drill.down()
    sys.exit(not good)


if __name__ == "__main__":
    main()
