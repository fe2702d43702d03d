#!/usr/bin/env bash
# Videos → shards as a job array, one part a task, and the merge as a job that waits for all of them.
# Launch: configs/slurm/prepare.sh INPUT SHARDS PARTS [OPTIONS OF data_prep …]
# Options of sbatch (partition, account, time) by its variables, such as SBATCH_PARTITION; DEX_CPUS (8) cores a task,
# DEX_PYTHON the interpreter.
set -euo pipefail
[ $# -ge 3 ] || { echo "usage: $0 INPUT SHARDS PARTS [OPTIONS OF data_prep …]" >&2; exit 2; }
input=$1 shards=$2 parts=$3
shift 3
python=${DEX_PYTHON:-.venv/bin/python}
common=(--parsable --requeue --open-mode=append)

array=$(sbatch "${common[@]}" --job-name=dex-prepare --array="1-$parts" --cpus-per-task="${DEX_CPUS:-8}" \
    --output="dex-prepare-%A_%a.log" --wrap="exec $(printf '%q ' "$python" -m data_prep "$input" "$@" \
        --workers "${DEX_CPUS:-8}") --out $(printf '%q' "$shards").parts/\$SLURM_ARRAY_TASK_ID \
        --part \$SLURM_ARRAY_TASK_ID/$parts")
# Not afterok: a part without an accepted clip ends with an error and is merged all the same; the merge itself refuses
# where a part is not finished or never began (PARTS above the number of recordings: merge by hand with --incomplete).
merge=$(sbatch "${common[@]}" --job-name=dex-merge --dependency="afterany:$array" --output="dex-merge-%j.log" \
    --wrap="exec $(printf '%q ' "$python" -m data_prep merge) $(printf '%q' "$shards").parts/* --out $(printf '%q' "$shards")")
echo "prepare: job $array, $parts parts; merge: job $merge"
