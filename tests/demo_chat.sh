#!/usr/bin/env bash
# A model that answers like a person, under Slurm, on this host: from a GGUF file to herd generate, herd batch and herd serve.
# Called by `make demo-chat`. KEEP=1 leaves the cluster up at the end; HERD_BINARY names another binary than the release build.
set -euo pipefail
cd "$(dirname "$0")/.."

demo=build/demo-chat
prefix=$PWD/build/demo-prefix   # where herd is installed, as on a cluster
cluster=tests/cluster/cluster   # a private Slurm; on a real cluster, leave `cluster run` away
python=${HERD_PYTHON:-python3}
model=$demo/SmolLM2-135M-Instruct
export HERD_CLUSTER=$PWD/$demo/cluster
nodes=2
began=$SECONDS

. tests/demo_steps.sh
job=
finish() {
    if [ -n "$job" ]; then $cluster run scancel "$job" || true; fi
    leave
}

install_with_model

title "2. Bring up a private Slurm with $nodes nodes"
trap finish EXIT
trap 'exit 130' INT TERM
show $cluster up --nodes $nodes

title "3. Three questions to herd generate --chat, on one node"
mapfile -t questions < <("$python" tests/demo_chat.py questions "$demo/questions.jsonl")
tokens=$("$python" tests/demo_chat.py tokens)
prompts=()
for question in "${questions[@]}"; do prompts+=(-p "$question"); done
show $cluster run srun --mpi=pmix -N1 herd generate --model "$model" --chat "${prompts[@]}" -n "$tokens" | tee "$demo/generate.txt"

title "4. The same as a file, to herd batch on both nodes: a replica on each"
show $cluster run srun --mpi=pmix -N$nodes --ntasks-per-node=1 --kill-on-bad-exit=1 \
    herd batch --model "$model" "$demo/questions.jsonl" "$demo/answers.jsonl"

title "5. The same to herd serve: one copy of the model over both nodes"
job=$(show $cluster run sbatch --parsable --nodes=$nodes --output="$demo/%x-%j.log" slurm/serve.sbatch "$model" "$demo/served" --pipeline 2 | tail -1)
log=$demo/herd-serve-$job.log
for _ in $(seq 120); do
    if grep -qs OPENAI_API_KEY "$log"; then break; fi
    sleep 0.5
done
cat "$log"
node=$(sed -n 's/ serves .*//p' "$log" | tail -1)
# On a cluster: through the ssh tunnel that the log names. Here: from inside the node.
show $cluster run srun --overlap --jobid="$job" -N1 -n1 -w "$node" "$python" tests/demo_chat.py ask "$demo/served" "$demo/served.json"

title "6. What came out: the same three answers, three ways"
"$python" tests/demo_chat.py compare "$demo"
echo "It took $((SECONDS - began)) seconds."
