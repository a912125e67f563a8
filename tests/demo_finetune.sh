#!/usr/bin/env bash
# A small model is taught a form of answer, on this host: conversations from a table of the package tzdata, low-rank adapters, and the
# same questions before and after. Called by `make demo-finetune`. HERD_BINARY names another binary than the release build.
set -euo pipefail
cd "$(dirname "$0")/.."

demo=build/demo-finetune
prefix=$PWD/build/demo-prefix   # where herd is installed, as on a cluster
python=${HERD_PYTHON:-python3}
model=$demo/SmolLM2-135M-Instruct
began=$SECONDS

. tests/demo_steps.sh

install_with_model

title "2. Conversations: questions on the time zones of /usr/share/zoneinfo, which the package tzdata ships, answered in one form"
"$python" tests/demo_finetune.py rows "$demo"
head -n 2 "$demo/conversations.jsonl"
show herd data chat --tokenizer "$model" --output "$demo/zones" "$demo/conversations.jsonl"
show herd data inspect "$demo/zones" --chat --show 1

title "3. Before: what it says of places that are not among them"
mapfile -t prompts < <("$python" tests/demo_finetune.py prompts "$demo")
ask() { show herd generate --model "$1" --chat "${prompts[@]}" -n 32 --temperature 0; }
ask "$model" | tee "$demo/before.txt"

title "4. Low-rank adapters beside all matrices of the blocks, two passes over the conversations"
"$python" tests/demo_finetune.py config "$demo" "$model"
show herd train "$demo/run.yaml"

title "5. After: the same questions; herd generate merges the adapters while it reads them"
ask "$demo/run" | tee "$demo/after.txt"

title "6. As a model of its own, for herd serve or any other program"
show herd checkpoint export "$demo/run" "$demo/merged" --dtype bf16

title "7. What came out"
"$python" tests/demo_finetune.py judge "$demo"
echo "It took $((SECONDS - began)) seconds."
