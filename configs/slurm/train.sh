# What every training job does; the .sbatch files source it with the arguments of dex.fit.
# Slurm signals this script (--signal=B:USR1@…) ahead of the time limit or of preemption. It repeats the signal to the
# tasks until they have ended, since one that comes while Python still imports is ignored; they save together between
# two batches and ask with status 75 for a second start, which continues the run. So do a lost node and a task that was
# killed (status above 128, but for 130 and 143: a person's SIGINT or scancel), at most DEX_RETRIES times. A mistake
# (status 1) ends the job.
set -uo pipefail
cd "${SLURM_SUBMIT_DIR:?submit this with sbatch, from the folder of the project}" || exit 1

# --wait: when a task is lost, the others would wait for it for ever. Nodes and devices come last: they are Slurm's to say,
# not a recorded config.yaml's.
srun --kill-on-bad-exit=0 --wait=60 bash -c 'trap "" USR1; exec "$@"' task "${DEX_PYTHON:-.venv/bin/python}" -m dex.fit "$@" \
    --trainer.num_nodes "$SLURM_JOB_NUM_NODES" --trainer.devices "${SLURM_NTASKS_PER_NODE:-1}" &
tasks=$!
trap 'signalled=1' USR1
signalled=0
while kill -0 "$tasks" 2>/dev/null; do
    if [ "$signalled" = 1 ]; then
        scancel --signal=USR1 "$SLURM_JOB_ID"
        sleep 5 &
        wait $! # for the time between two signals
    else
        wait "$tasks" # or until the trap
    fi
done
wait "$tasks"
status=$?

if [ "$status" = 75 ] ||
    { [ "$status" -gt 128 ] && [ "$status" != 130 ] && [ "$status" != 143 ] &&
        [ "${SLURM_RESTART_COUNT:-0}" -lt "${DEX_RETRIES:-3}" ]; }; then
    echo "status $status after start $((${SLURM_RESTART_COUNT:-0} + 1)): requeued"
    scontrol requeue "$SLURM_JOB_ID"
    exit 0
fi
exit "$status"
