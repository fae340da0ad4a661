#!/usr/bin/env bash
# `sbatch cluster/slurm.sh tasks/fingerprint.py --preset parts --data.root /shared/parts --storage /shared/runs`
# 3 nodes of 8 GPUs: one Ray over all of them, which ends with the command. See cluster/slurm.md.
#SBATCH --job-name=assay
#SBATCH --nodes=3
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=96
#SBATCH --mem=0
#SBATCH --exclusive
#SBATCH --time=12:00:00
#SBATCH --output=assay-%j.log
#SBATCH --requeue
set -euo pipefail

[ $# -gt 0 ] || { echo "Name a task file and its options." >&2; exit 2; }
cd "${SLURM_SUBMIT_DIR:?this script is for sbatch}"
source "${ASSAY_ENV:-.venv}/bin/activate"

head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
port=$((20000 + SLURM_JOB_ID % 10000))

# the token is this job's own: other users of the nodes could run code on its Ray otherwise
umask 077
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN
RAY_AUTH_TOKEN=$(python -c "import secrets; print(secrets.token_hex(32))")
export RAY_ENABLE_UV_RUN_RUNTIME_ENV=0
export RAY_SYMMETRIC_RUN_CLUSTER_WAIT_TIMEOUT=300 # seconds for all nodes to join; Ray's own 30 are few
export PYTHONPATH="$PWD/platform${PYTHONPATH:+:$PYTHONPATH}"

# symmetric-run does not tell the command where its Ray is
srun --nodes="$SLURM_JOB_NUM_NODES" --ntasks-per-node=1 --kill-on-bad-exit=1 --export=ALL \
    ray symmetric-run --address "$head:$port" --min-nodes "$SLURM_JOB_NUM_NODES" \
    --num-cpus="$SLURM_CPUS_PER_TASK" --num-gpus="${SLURM_GPUS_ON_NODE:-8}" \
    --temp-dir="/tmp/ray-$SLURM_JOB_ID" \
    -- env RAY_ADDRESS="$head:$port" python "$@" --gpus --workers $((SLURM_JOB_NUM_NODES * ${SLURM_GPUS_ON_NODE:-8}))
