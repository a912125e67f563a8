"""The peer of the sharded axes: the same Llama of transformers trained by PyTorch's own FSDP2, tensor parallelism or
pipelining over gloo, as a careful user would write it. One JSON object a line, like train_torch.py.

    python benchmarks/peers/parallel_torch.py --axis fsdp2 --ranks 2 --threads 1 --steps 5
    python benchmarks/peers/parallel_torch.py --axis tensor ...
    python benchmarks/peers/parallel_torch.py --axis pipeline --global-batch 4 ...     (micro-batches of one sequence)

What is chosen, and why:
- fsdp2: fully_shard on every block and on the model, parameters gathered in bf16, gradients reduced in fp32
  (MixedPrecisionPolicy), resharded after forward: ZeRO-3. Parameters are kept in fp32, as the policy wants them.
- tensor: parallelize_module with column- and row-wise linears, the embedding and the output matrix split by rows, the loss
  on sharded logits (loss_parallel), bf16; PyTorch's plan without sequence parallelism was the faster one here.
- pipeline: Schedule1F1B over two stages of equal layers, bf16, loss on the last stage.
- AdamW(fused=True) where it takes the parameters (it refuses DTensor on the CPU in some versions: foreach then), clipping
  at 1.0 by clip_grad_norm_, as herd does.
"""

import argparse
import json
import os
import sys
import time

from train_torch import SHAPE, batches, spawn


def arguments():
    p = argparse.ArgumentParser(description="train a Llama with PyTorch's sharded axes on the CPU")
    p.add_argument("--axis", choices=["fsdp2", "tensor", "pipeline"], required=True)
    p.add_argument("--ranks", type=int, default=2)
    p.add_argument("--steps", type=int, default=6)
    p.add_argument("--threads", type=int, default=1, help="threads of one process")
    p.add_argument("--sequence", type=int, default=512)
    p.add_argument("--global-batch", type=int, default=2)
    p.add_argument("--lr", type=float, default=3e-4)
    p.add_argument("--shape", type=json.loads, default=SHAPE, help="LlamaConfig keys as JSON")
    p.add_argument("--data", help="file of little-endian u16 token ids; without it random ids from a fixed seed")
    p.add_argument("--rank", type=int, default=0, help=argparse.SUPPRESS)
    p.add_argument("--rendezvous", help=argparse.SUPPRESS)
    args = p.parse_args()
    args.ddp = args.ranks  # what spawn() reads
    return args


def fsdp2(model, mesh, torch):
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    for block in model.model.layers:
        fully_shard(block, mesh=mesh, mp_policy=policy, reshard_after_forward=True)
    fully_shard(model, mesh=mesh, mp_policy=policy, reshard_after_forward=True)
    return model


def tensor(model, mesh, torch):
    from torch.distributed.tensor import Replicate, Shard
    from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

    plan = {"model.embed_tokens": RowwiseParallel(input_layouts=Replicate(), output_layouts=Replicate())}
    for i in range(len(model.model.layers)):
        for name in ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "mlp.gate_proj", "mlp.up_proj"):
            plan[f"model.layers.{i}.{name}"] = ColwiseParallel()
        for name in ("self_attn.o_proj", "mlp.down_proj"):
            plan[f"model.layers.{i}.{name}"] = RowwiseParallel()
    plan["lm_head"] = ColwiseParallel(output_layouts=Shard(-1), use_local_output=False)
    return parallelize_module(model, mesh, plan)


def clip(parameters, torch):
    """clip_grad_norm_ at 1.0 for a mixture of sharded (DTensor) and plain parameters, which it refuses itself."""
    from torch.distributed.tensor import DTensor

    sharded = [p.grad for p in parameters if isinstance(p.grad, DTensor)]
    plain = [p.grad for p in parameters if not isinstance(p.grad, DTensor)]
    norms = [torch.nn.utils.get_total_norm(g, foreach=True) for g in (sharded, plain) if g]
    norms = [n.full_tensor() if isinstance(n, DTensor) else n for n in norms]
    total = torch.linalg.vector_norm(torch.stack(norms))
    factor = torch.clamp(1.0 / (total + 1e-6), max=1.0)
    for group in (sharded, plain):
        if group:
            local = [g.to_local() if isinstance(g, DTensor) else g for g in group]
            torch._foreach_mul_(local, factor.to(local[0].dtype))


class Stage:
    """Half of the model as a module: tokens or hidden states in, hidden states or logits out."""

    @staticmethod
    def build(model, rank, ranks, torch):
        class Part(torch.nn.Module):
            def __init__(self):
                super().__init__()
                layers, each = model.model.layers, len(model.model.layers) // ranks
                self.embed = model.model.embed_tokens if rank == 0 else None
                self.layers = torch.nn.ModuleList(layers[rank * each : (rank + 1) * each])
                self.rotary = model.model.rotary_emb
                self.norm = model.model.norm if rank == ranks - 1 else None
                self.head = model.lm_head if rank == ranks - 1 else None

            def forward(self, x):
                x = self.embed(x) if self.embed is not None else x
                at = torch.arange(x.shape[1]).unsqueeze(0)
                rotary = self.rotary(x, at)
                for layer in self.layers:
                    x = layer(x, attention_mask=None, position_ids=at, position_embeddings=rotary)
                    x = x[0] if isinstance(x, tuple) else x
                return self.head(self.norm(x)) if self.head is not None else x

        return Part()


def main():
    args = arguments()
    if not args.rendezvous:
        sys.exit(spawn(args))
    os.environ.setdefault("HF_HUB_OFFLINE", "1")

    import torch
    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.set_num_threads(args.threads)
    torch.manual_seed(1234)
    dist.init_process_group("gloo", init_method=args.rendezvous, rank=args.rank, world_size=args.ranks)
    mesh = init_device_mesh("cpu", (args.ranks,))
    config = LlamaConfig(**args.shape, max_position_embeddings=8192, rope_theta=500000.0, use_cache=False)
    config._attn_implementation = "sdpa"
    torch.set_default_dtype(torch.float32 if args.axis == "fsdp2" else torch.bfloat16)
    model = LlamaForCausalLM(config).train()
    torch.set_default_dtype(torch.float32)

    own, sequences = args.rank, args.global_batch
    if args.axis == "fsdp2":
        model = fsdp2(model, mesh, torch)
        sequences = args.global_batch // args.ranks
    elif args.axis == "tensor":
        model = tensor(model, mesh, torch)
    else:
        model = Stage.build(model, args.rank, args.ranks, torch)
    parameters = list(model.parameters())
    fused = args.axis == "pipeline"
    from torch.distributed.tensor import DTensor

    # one kind of tensor a group: foreach does not mix them
    groups = [[p for p in parameters if isinstance(p, DTensor) == sharded] for sharded in (True, False)]
    optimizer = torch.optim.AdamW(
        [{"params": g} for g in groups if g], lr=args.lr, betas=(0.9, 0.95), weight_decay=0.1, **({"fused": True} if fused else {"foreach": True})
    )
    vocabulary = args.shape["vocab_size"]

    def cross_entropy(logits, targets):
        return torch.nn.functional.cross_entropy(logits.float().reshape(-1, vocabulary), targets.reshape(-1))

    if args.axis == "pipeline":
        from torch.distributed.pipelining import PipelineStage, Schedule1F1B

        stage = PipelineStage(model, args.rank, args.ranks, torch.device("cpu"))
        schedule = Schedule1F1B(stage, n_microbatches=args.global_batch, loss_fn=cross_entropy)

        def forward_backward(inputs, targets):
            losses = []
            if own == 0:
                schedule.step(inputs)
            else:
                schedule.step(target=targets, losses=losses)
            return sum(x.item() for x in losses) / max(len(losses), 1)

    elif args.axis == "tensor":
        from torch.distributed.tensor.parallel import loss_parallel

        def forward_backward(inputs, targets):
            with loss_parallel():
                logits = model(input_ids=inputs).logits
                loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.reshape(-1))
                loss.backward()
            loss = loss.full_tensor() if hasattr(loss, "full_tensor") else loss
            return loss.item()

    else:

        def forward_backward(inputs, targets):
            loss = model(input_ids=inputs, labels=targets, shift_labels=targets).loss
            loss.backward()
            return loss.item()

    if args.axis != "fsdp2":
        args.rank = 0  # every rank sees the same sequences
    data = batches(args, torch, sequences)
    for number in range(1, args.steps + 1):
        began = time.perf_counter()
        loss = forward_backward(*next(data))
        clip(parameters, torch)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if own == (args.ranks - 1 if args.axis == "pipeline" else 0):
            seconds = time.perf_counter() - began
            print(json.dumps({"step": number, "seconds": seconds, "loss": loss, "time": time.time()}), flush=True)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
