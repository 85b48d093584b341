#!/usr/bin/env bash
# The whole recipe on one node of eight GPUs. Each command goes on where it was cut off, so this script can be run again.
#   recipes/paper/run.sh [RECIPE]
set -euo pipefail
recipe="${1:-$(dirname "$0")/recipe.yaml}"
name="$(sed -n 's/^name: *//p' "$recipe")"

rlt warmup "$recipe"

if ! grep -q '"complete": true' "runs/$name/train/stage.json" 2>/dev/null; then
  if curl --silent --fail http://127.0.0.1:8000/health >/dev/null; then
    echo "something answers on port 8000 already, and this script did not start it" >&2
    exit 1
  fi
  # The sampler: the warmed-up teacher on GPUs 4 to 7. The trainer sends it its weights after every step.
  CUDA_VISIBLE_DEVICES=4,5,6,7 VLLM_SERVER_DEV_MODE=1 vllm serve "runs/$name/warmup" \
    --host 127.0.0.1 --port 8000 --data-parallel-size 4 --max-model-len 32768 \
    --weight-transfer-config '{"backend": "nccl"}' --logprobs-mode processed_logprobs --max-logprobs -1 &
  server=$!
  trap 'kill "$server" 2>/dev/null || true' EXIT
  until curl --silent --fail http://127.0.0.1:8000/health >/dev/null && kill -0 "$server"; do
    kill -0 "$server" || { echo "the vLLM server ended before it answered" >&2; exit 1; }
    sleep 5
  done
  CUDA_VISIBLE_DEVICES=0,1,2,3 rlt train "$recipe"
  kill "$server"
  wait "$server" || true
  trap - EXIT
fi

rlt run "$recipe"
