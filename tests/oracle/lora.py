"""Adapters in plain torch, from PEFT's form and the definition: y = W·x + s·B·(A·x); or, with a last argument `peft`, by PEFT itself.

    lora.py make MODEL OUT [rslora]   writes a random adapter for the model in MODEL in PEFT's form
    lora.py compare MODEL ADAPTER MERGED   largest difference between the logits of model with adapter and of the merged model,
                                           relative to the largest logit, and how far the adapter moves them, as JSON
    lora.py gradients MODEL ADAPTER STEP TEXT   largest difference between the gradients of the mean cross-entropy of TEXT's bytes by
                                           autograd and those of a checkpoint after one step (its first moments over 1 − 0.9),
                                           relative to the largest gradient, as JSON
"""
import json, math, os, sys
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

PREFIX = "base_model.model."


def opened(path):
    return AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()


def make_by_peft(model, out):
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(4)
    targets = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    m = get_peft_model(opened(model), LoraConfig(r=4, lora_alpha=6, target_modules=targets, task_type="CAUSAL_LM"))
    with torch.no_grad():
        for name, p in m.named_parameters():
            if "lora_B" in name:
                p.copy_(torch.randn_like(p) * 0.2)
    m.save_pretrained(out)


def make(model, out, rslora):
    torch.manual_seed(3)
    m, rank, targets, tensors = opened(model), 4, ["q_proj", "v_proj", "o_proj", "up_proj", "down_proj"], {}
    for name, module in m.named_modules():
        if name.rsplit(".", 1)[-1] in targets:
            tensors[f"{PREFIX}{name}.lora_A.weight"] = torch.randn(rank, module.in_features) / module.in_features**0.5
            tensors[f"{PREFIX}{name}.lora_B.weight"] = torch.randn(module.out_features, rank) * 0.2
    os.makedirs(out)
    save_file(tensors, os.path.join(out, "adapter_model.safetensors"), metadata={"format": "pt"})
    config = dict(peft_type="LORA", base_model_name_or_path=os.path.abspath(model), r=rank, lora_alpha=6, lora_dropout=0.1,
                  target_modules=targets, use_rslora=rslora, bias="none", task_type="CAUSAL_LM")
    json.dump(config, open(os.path.join(out, "adapter_config.json"), "w"))


def adapt(model, adapter):
    """Adds an adapter's products; its factors by their names in the model."""
    factors = {}
    config = json.load(open(os.path.join(adapter, "adapter_config.json")))
    r = config["r"]
    scale = config["lora_alpha"] / (math.sqrt(r) if config["use_rslora"] else r)
    tensors = load_file(os.path.join(adapter, "adapter_model.safetensors"))
    used = 0
    for name, module in model.named_modules():
        a = tensors.get(f"{PREFIX}{name}.lora_A.weight")
        if a is None:
            continue
        b = tensors[f"{PREFIX}{name}.lora_B.weight"]
        assert a.shape == (r, module.in_features) and b.shape == (module.out_features, r), name
        assert name.rsplit(".", 1)[-1] in config["target_modules"], name
        a, b = (t.float().requires_grad_() for t in (a, b))
        factors |= {f"{name}.lora_A.weight": a, f"{name}.lora_B.weight": b}
        module.register_forward_hook(lambda _, x, y, a=a, b=b: y + scale * (x[0] @ a.T @ b.T))
        used += 2
    assert used == len(tensors) > 0, f"{used} of {len(tensors)} tensors fit"
    return factors


@torch.no_grad()
def compare(model, adapter, merged, by_peft):
    ids = torch.arange(96).view(2, 48) * 7 % 250
    base = opened(model)
    plain = base(ids).logits
    if by_peft:
        from peft import PeftModel

        base = PeftModel.from_pretrained(base, adapter).eval()
    else:
        adapt(base, adapter)
    want, got = base(ids).logits, opened(merged)(ids).logits
    top = want.abs().max()
    print(json.dumps({"gap": ((want - got).abs().max() / top).item(), "moved": ((want - plain).abs().max() / top).item()}))


def gradients(model, adapter, step, text, by_peft):
    from checkpoint_read import load

    ids = torch.tensor([list(open(text, "rb").read())])
    base = opened(model)
    if by_peft:
        from peft import PeftModel

        base = PeftModel.from_pretrained(base, adapter, is_trainable=True).eval()
        named = {n.removeprefix(PREFIX).replace(".default.", "."): p for n, p in base.named_parameters() if p.requires_grad}
    else:
        named = adapt(base, adapter)
    logits = base(ids[:, :-1]).logits
    torch.nn.functional.cross_entropy(logits[0], ids[0, 1:]).backward()
    stored = {name: torch.from_numpy(array) for (group, name), array in load(step).items() if group == "exp_avg"}
    assert stored.keys() == named.keys(), f"{sorted(stored)[:3]} {sorted(named)[:3]}"
    top = max(p.grad.abs().max() for p in named.values())
    gap = max((stored[name] / (1 - 0.9) - p.grad).abs().max() for name, p in named.items())
    print(json.dumps({"gap": (gap / top).item(), "tensors": len(named)}))


peft = sys.argv[-1] == "peft"
if sys.argv[1] == "make" and peft:
    make_by_peft(*sys.argv[2:4])
elif sys.argv[1] == "make":
    make(sys.argv[2], sys.argv[3], "rslora" in sys.argv[4:])
elif sys.argv[1] == "gradients":
    gradients(*sys.argv[2:6], peft)
else:
    compare(*sys.argv[2:5], peft)
