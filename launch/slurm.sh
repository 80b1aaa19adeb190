#!/bin/bash
# A run on several nodes of a Slurm cluster: sbatch launch/slurm.sh CONFIG [key=value ...]
#
# Change the lines marked "here". One task a node starts torchrun, which starts a process for each
# GPU. output_dir and the configuration must be on a file system that all nodes share. A job that
# reaches its time limit, is preempted or fails with a node is put back into the queue and goes on
# from the last checkpoints (save_steps, save_iterations); --requeue needs no more than that.

#SBATCH --job-name=align
#SBATCH --nodes=2                       # here: nodes
#SBATCH --ntasks-per-node=1             # one torchrun a node, whatever the number of GPUs
#SBATCH --gpus-per-node=8               # here: GPUs a node; leave it out to train on CPUs
#SBATCH --cpus-per-task=64              # here: all cores of a node
#SBATCH --time=24:00:00                 # here: the queue's longest
#SBATCH --signal=B:USR1@120             # two minutes before that the script is told
#SBATCH --requeue
#SBATCH --open-mode=append              # the log goes on, too
#SBATCH --output=%x-%j.log

set -euo pipefail

if [ $# -lt 1 ]; then
  echo "usage: sbatch launch/slurm.sh CONFIG [key=value ...]" >&2
  exit 2
fi

# here: how the environment of the installation is entered
# source "$HOME/venv/bin/activate"

cd "$SLURM_SUBMIT_DIR"
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
export HF_HOME=${HF_HOME:-$SLURM_SUBMIT_DIR/.huggingface}   # shared, so that a model is fetched once
# Nodes without a way to the hub: fetch the model before, and say so.
# export HF_HUB_OFFLINE=1
# here: the network that the nodes reach each other by, if it is not the first one
# export NCCL_SOCKET_IFNAME=ib0 GLOO_SOCKET_IFNAME=ib0

requeue() {
  echo "the time is almost over: back into the queue" >&2
  scontrol requeue "$SLURM_JOB_ID"
}
trap requeue USR1

nodes=$(scontrol show hostnames "$SLURM_JOB_NODELIST")
first=${nodes%%$'\n'*}  # a pipe to head would end scontrol by a signal, and with it the script
port=$((20000 + SLURM_JOB_ID % 20000))  # two jobs on one node must not meet

# --kill-on-bad-exit: a node whose torchrun fails ends the others at once.
srun --kill-on-bad-exit=1 torchrun \
  --nnodes "$SLURM_NNODES" \
  --nproc-per-node "${SLURM_GPUS_ON_NODE:-1}" \
  --rdzv-backend c10d \
  --rdzv-endpoint "$first:$port" \
  --rdzv-id "$SLURM_JOB_ID-${SLURM_RESTART_COUNT:-0}" \
  launch/pipeline.py --config "$@" &

# In the background, so that the signal is seen at once; it interrupts the wait (128 + SIGUSR1).
child=$!
code=0
wait "$child" || code=$?
while [ "$code" -eq 138 ]; do
  code=0
  wait "$child" || code=$?
done
exit "$code"
