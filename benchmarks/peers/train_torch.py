"""The peer: Llama of transformers trained by PyTorch on the CPU, as a careful user would write it.

Prints one JSON object a line: {"step", "seconds", "loss", "time"}, `time` being the wall clock (seconds since the
epoch) at the end of the step, so that a harness on the same host can tell how long the first step took from process
start. `--op-share` prints, after the steps, where one further step spends its time.

    python benchmarks/peers/train_torch.py --steps 5 --threads 2 [--compile | --ddp 2] [--precision fp32]

What is chosen, and why (measured in benchmarks/README.md):
- parameters, gradients and both moments in the run's precision: for bf16 that is half the memory traffic of herd, which
  keeps fp32 masters, moments and gradients; autocast over fp32 parameters would be slower;
- AdamW(fused=True) and clip_grad_norm_(foreach=True): the fastest of PyTorch's own on CPU;
- scaled_dot_product_attention (flash on CPU), zero_grad(set_to_none=True), no anomaly checks, no data loader threads;
- DDP: static graph, gradients as views of the buckets, gloo on loopback, one thread a rank.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time

SHAPE = dict(
    hidden_size=768,
    intermediate_size=2048,
    num_hidden_layers=8,
    num_attention_heads=12,
    num_key_value_heads=4,
    vocab_size=32000,
)


def arguments():
    p = argparse.ArgumentParser(description="train a Llama with PyTorch and transformers on the CPU")
    p.add_argument("--steps", type=int, default=6)
    p.add_argument("--threads", type=int, default=2, help="threads of one process")
    p.add_argument("--precision", choices=["bf16", "fp32"], default="bf16")
    p.add_argument("--compile", action="store_true", help="torch.compile the model")
    p.add_argument("--ddp", type=int, default=0, metavar="N", help="N data-parallel processes over gloo")
    p.add_argument("--op-share", action="store_true", help="profile one more step: share of time by kind of operation")
    p.add_argument("--sequence", type=int, default=512)
    p.add_argument("--global-batch", type=int, default=2)
    p.add_argument("--lr", type=float, default=3e-4)
    p.add_argument("--clip", type=float, default=1.0)
    p.add_argument("--optimizer", choices=["fused", "foreach"], default="fused")
    p.add_argument("--shape", type=json.loads, default=SHAPE, help="LlamaConfig keys as JSON")
    p.add_argument("--data", help="file of little-endian u16 token ids; without it random ids from a fixed seed")
    p.add_argument("--rank", type=int, default=0, help=argparse.SUPPRESS)
    p.add_argument("--rendezvous", help=argparse.SUPPRESS)
    return p.parse_args()


def spawn(args):
    """One process a rank, each a copy of this command; none imports torch twice."""
    with tempfile.TemporaryDirectory() as folder:
        env = dict(os.environ, GLOO_SOCKET_IFNAME="lo", OMP_NUM_THREADS=str(args.threads))
        command = [sys.executable, *sys.argv, "--rendezvous", f"file://{folder}/store"]
        ranks = [subprocess.Popen([*command, "--rank", str(r)], env=env) for r in range(args.ddp)]
        try:
            return max(abs(p.wait()) for p in ranks)
        finally:
            for p in ranks:
                if p.poll() is None:
                    p.kill()


def batches(args, torch, sequences):
    """Endless (inputs, targets), int64 [B, S] each: consecutive tokens of the file, each rank its share of the batch."""
    length = args.sequence + 1
    if args.data:
        count = os.path.getsize(args.data) // 2
        ids = torch.from_file(args.data, size=count, dtype=torch.uint16).to(torch.int64)
    else:
        generator = torch.Generator().manual_seed(1234)
        ids = torch.randint(0, args.shape["vocab_size"], (256 * length,), generator=generator)
    samples = ids[: ids.numel() // length * length].view(-1, length)
    at = args.rank * sequences
    while True:
        rows = [(at + i) % len(samples) for i in range(sequences)]
        batch = samples[rows]
        yield batch[:, :-1].contiguous(), batch[:, 1:].contiguous()
        at += args.global_batch


def main():
    args = arguments()
    if args.ddp and not args.rendezvous:
        sys.exit(spawn(args))
    os.environ.setdefault("HF_HUB_OFFLINE", "1")

    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.set_num_threads(args.threads)
    torch.manual_seed(1234)
    dtype = {"bf16": torch.bfloat16, "fp32": torch.float32}[args.precision]
    world = args.ddp or 1
    sequences = args.global_batch // world

    config = LlamaConfig(**args.shape, max_position_embeddings=8192, rope_theta=500000.0, use_cache=False)
    config._attn_implementation = "sdpa"
    torch.set_default_dtype(dtype)
    model = LlamaForCausalLM(config).train()
    torch.set_default_dtype(torch.float32)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=args.lr, betas=(0.9, 0.95), weight_decay=0.1, **{args.optimizer: True}
    )
    parameters = list(model.parameters())
    if args.ddp:
        torch.distributed.init_process_group("gloo", init_method=args.rendezvous, rank=args.rank, world_size=world)
        model = torch.nn.parallel.DistributedDataParallel(model, gradient_as_bucket_view=True, static_graph=True)
    if args.compile:
        model = torch.compile(model)

    def step(inputs, targets):
        loss = model(input_ids=inputs, labels=targets, shift_labels=targets).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, args.clip, foreach=True)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.item()

    data = batches(args, torch, sequences)
    for number in range(1, args.steps + 1):
        start = time.perf_counter()
        loss = step(*next(data))
        seconds = time.perf_counter() - start
        if args.rank == 0:
            line = {"step": number, "seconds": seconds, "loss": loss, "time": time.time()}
            print(json.dumps(line), flush=True)
    if args.op_share and args.rank == 0:
        print(json.dumps({"op_share": op_share(torch, lambda: step(*next(data)))}), flush=True)
    if args.ddp:
        torch.distributed.destroy_process_group()


def op_share(torch, step):
    """Shares of the step's time by kind of operation, from the profiler's self times on the calling thread."""
    kinds = {
        "matmul": ("aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm", "mkldnn::_linear_pointwise"),
        "attention": ("aten::_scaled_dot_product_flash_attention_for_cpu",),
        "optimizer": ("aten::_fused_adamw_", "aten::_foreach"),
    }
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        step()
    events = profile.key_averages()
    total = sum(e.self_cpu_time_total for e in events)
    shares = {k: sum(e.self_cpu_time_total for e in events if e.key.startswith(names)) / total for k, names in kinds.items()}
    return {**shares, "other": 1 - sum(shares.values())}


if __name__ == "__main__":
    main()
