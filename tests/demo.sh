#!/usr/bin/env bash
# From a text to a trained Llama 3 under Slurm, on this host: what a user does on a cluster, step by step.
# Called by `make demo`. KEEP=1 leaves the cluster up at the end.
set -euo pipefail
cd "$(dirname "$0")/.."

demo=build/demo                 # everything of the demo
prefix=$PWD/build/demo-prefix   # where herd is installed, as on a cluster: PREFIX=/project/software/herd
run=$demo/run                   # the run directory, as configs/llama3_demo.yaml names it
cluster=tests/cluster/cluster   # a private Slurm; on a real cluster, leave `cluster run` away
python=${HERD_PYTHON:-python3}
export HERD_CLUSTER=$PWD/$demo/cluster
nodes=2

. tests/demo_steps.sh

title "1. Install herd, as on a cluster"
rm -rf "$demo"
mkdir -p "$demo"
tests/setup/install.sh "$prefix"
# A cluster has the command `module`; this host gets environment-modules for the length of the demo.
command -v module >/dev/null || . tests/module.sh tcl "${HERD_DEPS:-build/deps}/modules"
export MODULEPATH=$prefix/share/modulefiles${MODULEPATH:+:$MODULEPATH}
show module load herd
show herd --version

title "2. Bring up a private Slurm with $nodes nodes"
trap leave EXIT
trap 'exit 130' INT TERM
show $cluster up --nodes $nodes
show $cluster run sinfo

title "3. Turn a text into tokens: the King James Bible, with a twentieth held out"
bible -l79 gen1:1-rev22:21 >"$demo/bible.txt"
echo "$demo/bible.txt: $(stat -c %s "$demo/bible.txt") bytes"
show herd data tokenize --tokenizer bytes --holdout 0.05 --output "$demo/corpus" "$demo/bible.txt"

# submit EXPECT ARGUMENTS…: the batch script with ARGUMENTS, followed with a progress bar; EXPECT is its exit code.
submit() {
    local expect=$1 job code log
    shift
    echo "\$ sbatch slurm/llama3_demo.sbatch $*"
    job=$($cluster run sbatch --parsable --output="$demo/%x-%j.log" slurm/llama3_demo.sbatch "$@")
    log=$demo/herd-demo-$job.log
    "$python" tests/demo.py follow "$run/metrics.jsonl" "$steps" $cluster run squeue -h -j "$job" -o %T
    code=$($cluster run scontrol show job "$job" | sed -n 's/.* ExitCode=\([0-9]*\):.*/\1/p')
    if [ "$code" != "$expect" ]; then
        echo "job $job ended with code $code, not $expect; the end of its log, $log:"
        tail -20 "$log"
        exit 1
    fi
    grep -E 'resumed|checkpoint' "$log" | tail -3 || true
}

title "4. Train on both nodes, and stop half-way (exit code 75: saved, submit again)"
steps=$(sed -n 's/^  steps: *//p' configs/llama3_demo.yaml)
began=$SECONDS
submit 75 --set "train.stop_at=$((steps / 2))"

title "5. Submit the same script again: it resumes from its checkpoint"
submit 0
trained=$((SECONDS - began))

title "6. Look at the checkpoints, export to Hugging Face's layout, and let the model speak"
show herd checkpoint list "$run"
show herd checkpoint verify "$run"
show herd checkpoint export "$run" "$demo/hf"
show herd generate --model "$demo/hf" --tokenizer bytes --prompt "And it came to pass" --max-new-tokens 200 --temperature 0.7 --seed 1

title "7. What came out"
"$python" tests/demo.py table "$run" "$demo/hf" "$trained"
