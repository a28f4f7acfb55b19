#!/usr/bin/env bash
# paper_7b_8gpu under Slurm: a Ray cluster over the nodes of the job, and the run on its first node.
#
#   sbatch deploy/cluster/slurm.sh                                 # from a checkout with .venv, on a file system all nodes see
#   sbatch deploy/cluster/slurm.sh --config gsm8k_1gpu run.name=x  # other arguments of `terse run`
#
# Ten minutes before the time limit the run is told to stop: it saves after the step it is at, and the job goes back into
# the queue, where it goes on from there. Its syntax was checked; it was not submitted.
#SBATCH --job-name=terse
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=32
#SBATCH --mem=288G
#SBATCH --time=24:00:00
#SBATCH --signal=B:TERM@600
#SBATCH --requeue
#SBATCH --open-mode=append
set -euo pipefail

arguments=("$@")
[ ${#arguments[@]} -gt 0 ] || arguments=(--config paper_7b_8gpu run.dir=runs)
source .venv/bin/activate

# A token for this job alone, which only its owner can read. Other jobs share the nodes' network.
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH="$PWD/.ray-token-$SLURM_JOB_ID" RAY_USAGE_STATS_ENABLED=0
(umask 077 && python -c 'import secrets; print(secrets.token_hex(32))' > "$RAY_AUTH_TOKEN_PATH")
trap 'rm -f "$RAY_AUTH_TOKEN_PATH"; kill $(jobs -p) 2> /dev/null || true' EXIT

mapfile -t nodes < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
head_ip=$(srun --nodes=1 --ntasks=1 --nodelist="${nodes[0]}" hostname --ip-address | awk '{print $1}')
port=$((20000 + SLURM_JOB_ID % 20000))

srun --overlap --nodes=1 --ntasks=1 --nodelist="${nodes[0]}" \
  ray start --head --block --node-ip-address="$head_ip" --port="$port" --dashboard-host=127.0.0.1 &
head=$!
for node in "${nodes[@]:1}"; do
  srun --overlap --nodes=1 --ntasks=1 --nodelist="$node" ray start --block --address="$head_ip:$port" &
done

stopped=
driver=
# The signal before the time limit, whatever the job is at.
trap 'stopped=yes; [ -z "$driver" ] || kill -TERM "$driver"' TERM
export RAY_ADDRESS="$head_ip:$port"
num_nodes='import ray; ray.init(log_to_driver=False); print(sum(node["Alive"] for node in ray.nodes()))'
deadline=$((SECONDS + ${TERSE_CLUSTER_TIMEOUT_S:-900}))
until [ "$(python -c "$num_nodes" 2> /dev/null)" = "${#nodes[@]}" ]; do
  # A head that has ended, or a node that never comes, must not hold eight GPUs until the time limit.
  kill -0 "$head" 2> /dev/null || { echo "Ray's head node has ended: see above" >&2; exit 1; }
  [ "$SECONDS" -lt "$deadline" ] || { echo "no ${#nodes[@]} node(s) after ${TERSE_CLUSTER_TIMEOUT_S:-900} s" >&2; exit 1; }
  [ -z "$stopped" ] || { scontrol requeue "$SLURM_JOB_ID"; exit 0; }
  echo "waiting for ${#nodes[@]} node(s) of the Ray cluster"
  sleep 5
done
terse run "${arguments[@]}" &
driver=$!
status=0
wait "$driver" || status=$?
# `wait` comes back when the signal does, before the run has saved.
if [ -n "$stopped" ]; then
  status=0
  wait "$driver" || status=$?
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
