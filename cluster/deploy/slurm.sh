#!/usr/bin/env bash
# A Ray cluster for the time of one SLURM job, and one run on it: the head and the run on the first node, a worker on
# each of the others.
#
#   sbatch --nodes=4 --gpus-per-node=1 cluster/deploy/slurm.sh demo --out /shared/runs/demo
#
# The arguments are those of `wmpo run`. Submit from a folder that all nodes share, with the program installed in the
# Python that WMPO_PYTHON names (default: python on the PATH). A job that is preempted or runs out of time leaves with
# exit code 75, is put into the queue again and goes on from its last checkpoint.
#
#SBATCH --job-name=wmpo
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --signal=B:TERM@120
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=wmpo-%j.log
set -euo pipefail
umask 077

PREEMPTED=75
PYTHON=${WMPO_PYTHON:-python}
RAY="$(dirname "$(command -v "$PYTHON")")/ray"
job=${SLURM_JOB_ID:?"submit this file with sbatch"}
[ $# -gt 0 ] || { echo "say what to run: sbatch slurm.sh PRESET|FILE --out DIR" >&2; exit 2; }

# Every job has a token of its own, in a file that only its owner reads; processes get the file's name, not the token.
secrets=${WMPO_SECRETS:-$HOME/.wmpo}/slurm-$job
mkdir -p "$secrets"
"$PYTHON" -c 'import secrets; print(secrets.token_hex(32))' > "$secrets/auth_token"
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH=$secrets/auth_token RAY_USAGE_STATS_ENABLED=0
export RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S=0  # all nodes end together: nothing could move from one to another

# Jobs that share a node must not meet: each has its own ports and its own folder for Ray's sessions, which Ray makes
# readable for everybody. The path is short because sockets stand in it.
port=$((20000 + job % 1000 * 10))
temp=$(mktemp -d /tmp/wmpo-XXXXXX)
head_ip=${WMPO_HEAD_IP:-$(hostname --ip-address | tr ' ' '\n' | grep -v '^127\.' | head -n 1)}
if [ "${SLURM_NNODES:-1}" -eq 1 ]; then
    export RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER=0  # one node: nothing listens beyond 127.0.0.1
    head_ip=127.0.0.1
fi

head=""
workers=""
run=""
told=""
leave() { # What this job started, and nothing else.
    trap - EXIT
    rm -rf "$secrets"
    # srun hands USR1 on to its tasks; at a TERM it would kill them.
    [ -z "$workers" ] || { kill -USR1 "$workers" && wait "$workers"; } 2> /dev/null || true
    [ -z "$head" ] || { kill -TERM "$head" && wait "$head"; } 2> /dev/null || true
    rm -rf "$temp"
}
trap leave EXIT
trap 'told=yes; [ -z "$run" ] || kill -TERM "$run" 2> /dev/null || true' TERM

cpus=${SLURM_CPUS_PER_TASK:-$(nproc)}
"$RAY" start --block --disable-usage-stats "--temp-dir=$temp/ray" --head "--node-ip-address=$head_ip" \
    "--port=$port" "--num-cpus=$cpus" \
    --dashboard-host=127.0.0.1 "--dashboard-port=$((port + 1))" "--ray-client-server-port=$((port + 2))" \
    "--dashboard-agent-listen-port=$((port + 3))" "--metrics-export-port=$((port + 4))" &
head=$!
deadline=$((SECONDS + 120))
until "$RAY" health-check --address "$head_ip:$port" > /dev/null 2>&1; do
    [ -z "$told" ] || exit $PREEMPTED
    [ $SECONDS -lt $deadline ] || { echo "the head at $head_ip:$port did not come up in 120 s" >&2; exit 1; }
    kill -0 "$head" 2> /dev/null || { echo "the head ended; port $port may be taken" >&2; exit 1; }
    sleep 1
done

if [ "${SLURM_NNODES:-1}" -gt 1 ]; then
    others=$((SLURM_NNODES - 1))
    first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
    # shellcheck disable=SC2016  # what is in quotes belongs to the shell on the other node
    srun "--nodes=$others" "--ntasks=$others" "--exclude=$first" "--cpus-per-task=$cpus" --kill-on-bad-exit=0 \
        bash -c 'temp=$(mktemp -d /tmp/wmpo-XXXXXX); "$@" "--temp-dir=$temp/ray" & ray=$!
            trap "kill -TERM $ray" USR1; wait $ray; wait $ray; rm -rf "$temp"' worker \
        "$RAY" start --block --disable-usage-stats "--address=$head_ip:$port" "--num-cpus=$cpus" \
        "--dashboard-agent-listen-port=$((port + 5))" "--metrics-export-port=$((port + 6))" &
    workers=$!
fi

export RAY_ADDRESS=$head_ip:$port
echo "job $job: Ray at $RAY_ADDRESS, dashboard at http://127.0.0.1:$((port + 1)) on $(hostname)"
code=0
if [ -z "$told" ]; then
    "$PYTHON" -m wmpo_ray run "$@" --resume &
    run=$!
    wait "$run" || code=$?
    # A signal ends bash's wait, not the run's.
    while kill -0 "$run" 2> /dev/null; do code=0; wait "$run" || code=$?; done
else
    code=$PREEMPTED
fi

# scancel sends the same signal; a job that somebody cancelled must not come back.
if [ $code -eq $PREEMPTED ] && scontrol show job "$job" | grep -q 'JobState=RUNNING'; then
    leave
    scontrol requeue "$job"
fi
exit $code
