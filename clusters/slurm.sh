#!/usr/bin/env bash
# A sweep on a Slurm cluster: Ray's head and workers on the nodes of one job, and the sweep in it. What it costs is the
# job: nodes × time. Not yet run under Slurm; CI runs it with a stand-in for srun.
#
# Assumes: a home and a folder for runs that all nodes see; `make demo` (or pip install -r requirements.txt) was run in
# the project's folder, so that .venv is there; a driver of 580 or newer on GPU nodes.
# Start, from the project's folder; what stands behind the script goes to pipelines/sweep.py:
#   sbatch --partition=gpu clusters/slurm.sh --dataset vggsound --data-root /shared/vggsound --set data.cache=/shared/cache
# Watch: tail -f slurm-JOB.out. Dashboard: ssh -L 8265:NODE:PORT, both in the first lines of that file; it asks for the
# token, ray get-auth-token. Stop: scancel JOB. Go on: sbatch the same with RUN=that run's folder, or let Slurm requeue.
#SBATCH --job-name=crmt-sweep
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=16
#SBATCH --gpus-per-node=1
#SBATCH --exclusive
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
set -euo pipefail

cd "${SLURM_SUBMIT_DIR:?start me with sbatch}"
# shellcheck disable=SC1091
source .venv/bin/activate
RUN=${RUN:-$PWD/runs/slurm-$SLURM_JOB_ID}
PORT=$((20000 + SLURM_JOB_ID % 10000)) # jobs on one node do not meet
DASHBOARD=$((PORT + 10000))
HEAD=$(hostname --ip-address | tr ' ' '\n' | grep -m 1 -F .)
export HEAD PORT DASHBOARD RAY_AUTH_MODE=token RAY_ADDRESS="$HEAD:$PORT"
test -s ~/.ray/auth_token || (umask 077 && ray get-auth-token --generate > /dev/null)
ulimit -n "$(ulimit -Hn)"

# Node 0 of the job is the machine that runs this script. Every node joins with what Slurm gave it.
srun --ntasks-per-node=1 --kill-on-bad-exit=1 bash -c '
  options=(--num-cpus="$SLURM_CPUS_PER_TASK" --num-gpus="${SLURM_GPUS_ON_NODE:-0}" --block)
  if [ "$SLURM_NODEID" = 0 ]; then
    exec ray start --head --node-ip-address="$HEAD" --port="$PORT" --dashboard-host=0.0.0.0 \
      --dashboard-port="$DASHBOARD" --temp-dir="/tmp/ray-$SLURM_JOB_ID" "${options[@]}"
  fi
  until ray health-check --address "$HEAD:$PORT"; do sleep 2; done
  exec ray start --address="$HEAD:$PORT" "${options[@]}"' &
ray_nodes=$!
trap 'kill "$ray_nodes" 2> /dev/null || true; wait "$ray_nodes" || true' EXIT

echo "Ray at $HEAD:$PORT, dashboard at $HEAD:$DASHBOARD, run in $RUN"
python - "$SLURM_JOB_NUM_NODES" <<'PYTHON'
import sys, time
import ray

until, wanted = time.monotonic() + 300, int(sys.argv[1])
while time.monotonic() < until:
    try:
        ray.init(logging_level="ERROR", log_to_driver=False)
        alive = sum(node["Alive"] for node in ray.nodes())
        ray.shutdown()
        if alive >= wanted:
            sys.exit(0)
    except ConnectionError:
        pass
    time.sleep(2)
sys.exit(f"not all {wanted} nodes have joined Ray within 5 minutes: see above")
PYTHON

if [ -f "$RUN/run.json" ]; then
  python pipelines/sweep.py --resume "$RUN"
else
  python pipelines/sweep.py --out "$RUN" "$@"
fi
