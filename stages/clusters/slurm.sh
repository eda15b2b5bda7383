#!/bin/bash
# Train all parts on two machines of eight GPUs: sbatch stages/clusters/slurm.sh
# A job that reaches its time limit saves its state. Submit the script several times, and the jobs run one after the
# other, each from where the one before it ended: sbatch --dependency=singleton stages/clusters/slurm.sh
#SBATCH --job-name=unclip
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --time=24:00:00
#SBATCH --signal=TERM@300
#SBATCH --requeue

set -e
source .venv/bin/activate
first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
machines="--nnodes $SLURM_NNODES --nproc-per-node 8 --rdzv-backend c10d --rdzv-endpoint $first:29400"
out=/shared/checkpoints/paper

srun torchrun $machines --rdzv-id "$SLURM_JOB_ID-clip" --max-restarts 3 \
    train_clip.py --preset paper --data /shared/shards --data.stream --train.shard --out $out
srun torchrun $machines --rdzv-id "$SLURM_JOB_ID-embed" --max-restarts 3 \
    -m stages.embed --out $out
srun torchrun $machines --rdzv-id "$SLURM_JOB_ID-prior" --max-restarts 3 \
    train_prior.py --preset paper --train.shard --out $out
srun torchrun $machines --rdzv-id "$SLURM_JOB_ID-embed-small" --max-restarts 3 \
    -m stages.embed --data.size 64 --out $out  # as the decoder sees them
srun torchrun $machines --rdzv-id "$SLURM_JOB_ID-decoder" --max-restarts 3 \
    train_decoder.py --preset paper --train.shard --out $out
