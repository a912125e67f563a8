"""TRL's SFTTrainer on conversations of a token file, for benchmarks/finetune_speed.py.

    sft_trl.py make MODEL '{"hidden_size": …}'                  writes a random Llama in Hugging Face's form
    sft_trl.py train MODEL CORPUS '{"batch": 8, "epochs": 2, "dtype": "fp32", "lora": null, "lr": 2e-5}'

CORPUS: prefix of a token file with a loss mask (docs/data.md); its tokens are TRL's, nothing is tokenized. Prints, as JSON, the seconds of each
optimizer step, the tokens that count in each, and the loss of each. `lora`: {"rank": …, "alpha": …}, by PEFT, on all seven matrices.
"""
import json, sys, tempfile, time

import numpy as np
import torch


def make(path, shape):
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(5)
    LlamaForCausalLM(LlamaConfig(**shape)).to(torch.float32).save_pretrained(path)


def documents(prefix):
    index = open(f"{prefix}.idx", "rb").read()
    code, count = index[17], int(np.frombuffer(index, "<u8", 1, 18)[0])
    lengths = np.frombuffer(index, "<i4", count, 34)
    ids = np.fromfile(f"{prefix}.bin", "<u2" if code == 8 else "<i4").astype("i8")
    mask = np.fromfile(f"{prefix}.mask", "u1")
    for end, n in zip(np.cumsum(lengths), lengths):
        own, counts = ids[end - n : end], mask[end - n : end]
        yield {"input_ids": own.tolist(), "labels": np.where(counts > 0, own, -100).tolist()}


def train(model, corpus, s):
    import pyarrow as pa
    from datasets import Dataset
    from datasets.table import InMemoryTable
    from tokenizers import Tokenizer, models
    from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast, TrainerCallback
    from trl import SFTConfig, SFTTrainer

    rows = list(documents(corpus))
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[s["dtype"]]
    policy = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    if s["lora"]:
        from peft import LoraConfig, get_peft_model

        targets = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
        lora = LoraConfig(r=s["lora"]["rank"], lora_alpha=s["lora"]["alpha"], target_modules=targets, task_type="CAUSAL_LM")
        policy = get_peft_model(policy, lora)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel({"x": 0, "p": 1}, unk_token="x")), pad_token="p", eos_token="p")
    steps = []

    class Watch(TrainerCallback):
        def on_step_begin(self, *_, **__):
            self.began = time.perf_counter()

        def on_step_end(self, *_, **__):
            steps.append(time.perf_counter() - self.began)

    with tempfile.TemporaryDirectory() as out:
        config = SFTConfig(
            output_dir=out, per_device_train_batch_size=s["batch"], num_train_epochs=s["epochs"], learning_rate=s["lr"], bf16=dtype == torch.bfloat16,
            use_cpu=True, report_to=[], gradient_checkpointing=False, max_length=None, save_strategy="no", logging_strategy="steps", logging_steps=1,
            dataset_kwargs={"skip_prepare_dataset": True}, disable_tqdm=True, lr_scheduler_type="constant", warmup_steps=0, max_grad_norm=1.0,
            dataloader_num_workers=0, seed=1,
        )
        dataset = Dataset(InMemoryTable(pa.Table.from_pylist(rows)), fingerprint="conversations")
        trainer = SFTTrainer(model=policy, args=config, train_dataset=dataset, processing_class=tokenizer, callbacks=[Watch()])
        trainer.train()
        losses = [h["loss"] for h in trainer.state.log_history if "loss" in h]
    counted = sum(sum(l >= 0 for l in r["labels"][1:]) for r in rows)
    print(json.dumps({"steps": steps, "counted": counted, "conversations": len(rows), "losses": losses, "threads": torch.get_num_threads()}))


if __name__ == "__main__":
    if sys.argv[1] == "make":
        make(sys.argv[2], json.loads(sys.argv[3]))
    else:
        train(sys.argv[2], sys.argv[3], json.loads(sys.argv[4]))
