"""What must have come of a fault beyond what every case is judged by: `(job, notes) -> None`, raises `Failed`, adds to notes."""

import time

from lab import Failed, alive, processes, wait_for


def is_gone(job, notes):
    wait_for("the process that woke up ends", 10, lambda: not alive(job.woken))
    notes.append("the old process is gone, and wrote nothing")


def heal(job, notes):
    """The old ranks on the node that was cut off are gone, by themselves, before it is back."""
    wait_for("ranks on the node that was cut off end", 30, lambda: not [p for p in rank_nodes(job) if p == job.cut])
    job.cluster.tool("heal", job.cut)
    notes.append("ranks that were cut off left by themselves")


def rank_nodes(job):
    return [env.get("SLURMD_NODENAME") for _, env in processes([str(job.run_dir), " train "]) if "HERD_ATTEMPT" in env]


def left_meanwhile(job, notes):
    if job.left_s is None:
        raise Failed("ranks stayed while the filesystem blocked")
    notes.append(f"the others had left {job.left_s:.1f} s after it began to block")


def shifts_seen(job, notes):
    a, b = job.shifts
    if not (50 < a < 70 and -70 < b < -50):
        raise Failed(f"clocks were off by {a:.1f} and {b:.1f} s, not by ±60 s")
    notes.append(f"clocks off by {a:+.0f} and {b:+.0f} s, no false verdict in 10 s")


def stopped_once(job, notes):
    """Saved at the step at which it stopped, requeued once."""
    stopped, resumed = job.events("stopped"), job.events("resume")
    if len(stopped) != 1 or resumed[-1]["step"] != stopped[0]["step"]:
        raise Failed(f"stopped at {[e['step'] for e in stopped]}, went on from {[e['step'] for e in resumed]}")
    notes.append(f"saved at step {stopped[0]['step']}")
    requeued(1)(job, notes)


def flushed(job, notes):
    """Memory of nodes that were given up and live went to disk before the next attempt."""
    found = [e["result"] for e in job.events("flush") if not e["result"].startswith("no whole step")]
    if not found or not found[0].startswith("wrote"):
        raise Failed(f"flushed: {found}")
    notes.append("their memory went to disk first")


def from_disk(job, notes):
    """A slice was nowhere in memory any more."""
    resumed, mended = job.events("resume")[-1], job.events("recovered")[-1]
    # the whole checkpoint, or the one part of its step that no memory holds
    if resumed["step"] % 20 or not resumed["tiers"]["disk"]:
        raise Failed(f"went on from {resumed}")
    notes.append(f"back to the checkpoint on disk of step {resumed['step']}; said: {mended['steps_lost']} steps are done again")


def heal_first(job, notes):
    """The link is back while the standby's attempt runs: the old supervisor must not disturb it, nor end the job."""
    job.cluster.tool("heal", job.cut)
    job.cut = None
    before = job.step()
    job.reach(before + 100)
    taken_over(job, notes, running=True)
    notes.append("the link came back meanwhile, and the old supervisor kept still")


def taken_over(job, notes, running=False):
    """The supervisor's standby has gone on in its place, in the same job, and has ended the job that lost its batch script."""
    found = job.events("taken_over")
    if len(found) != 1 or found[0]["lost"] != "herd1" or not (running or job.events("finished")):
        raise Failed(f"taken over: {found}")
    if job.events("requeue") or int(job.state()["Restarts"]):
        raise Failed("it was requeued")
    notes.append(f"the standby on {found[0]['by']} took over")


def one_attempt(job, notes):
    """The ranks trained on."""
    found = job.events("supervisor_restarted")
    if len(found) != 1 or found[0]["signal"] != 9 or len(job.events("attempt_started")) != 1:
        raise Failed(f"{found}, {len(job.events('attempt_started'))} attempts")
    notes.append("started again; the ranks trained on")


def goes_on_elsewhere(job, notes):
    """What was saved when the run's directory was gone is the state of the last step, and a run goes on from it."""
    saved = sorted((job.run_dir / "checkpoints").glob("step-*"))
    if len(saved) != 1 or job.ended_s > 25:
        raise Failed(f"{saved} in launch.rescue_dir, the job ended after {job.ended_s:.1f} s")
    step = int(saved[0].name.split("-")[1])
    after = job.again(f"run_dir={job.run_dir}")
    if after.finish(120) != 0 or after.losses() != [x for x in job.reference if x[0] > step]:
        raise Failed(f"the run that went on from step {step} ended at {after.step()}: {after.log.read_text()[-1000:]}")
    notes.append(f"over after {job.ended_s:.1f} s; step {step} was saved elsewhere, and a new job went on from there")


def in_two_files(job, notes):
    """Every step and event stands in the old file or in the new one, which job.losses() has read together."""
    new = (job.run_dir / "events.jsonl").read_text()
    if '"finished"' not in new or "was moved or removed" not in job.log.read_text():
        raise Failed("no event in the new file, or nothing was said")
    notes.append("nothing is lost, and it was said")


def second_spare(job, notes):
    """The node on which the program cannot start is passed over at once."""
    tries = [e["nodes"] for e in job.events("attempt_started")]
    if len(tries) != 3 or "herd4" not in tries[1] or "herd4" in tries[2] or "herd2" in tries[2]:
        raise Failed(f"attempts on {tries}")
    notes.append(f"herd4 cannot run it: then {tries[2]}")


def said_and_ignored(job, notes):
    """What was submitted goes on."""
    kept = list((job.run_dir / "launch").glob("job-*.yaml"))
    if len(kept) != 1:
        raise Failed(f"kept: {kept}")
    notes.append("what was submitted went on")


def first_program(job, notes):
    """Ranks run the program that the job was started with."""
    kept = list((job.run_dir / "launch").glob("job-*.program"))
    if len(kept) != 1 or "was replaced or removed" not in job.log.read_text():
        raise Failed(f"kept: {kept}")
    notes.append("the first program went on, from the run directory")


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


# The others look when the job has ended.
WHILE_IT_RUNS = (heal, heal_first, is_gone)
