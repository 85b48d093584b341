#!/usr/bin/env bash
# Teacher RL with slime and rlt's reward: slime.sh PROMPTS.jsonl [slime's own options for model and cluster]. Needs GPUs; it was
# not run.
#
# RLT_URL names the running `rlt serve`. PROMPTS.jsonl: `python -m rlt.integrations.prompts --data ... --model TEACHER`.
set -euo pipefail
: "${RLT_URL:?the address of a running rlt serve}"

python train.py "${@:2}" \
  --prompt-data "$1" --input-key prompt --label-key label \
  --custom-rm-path rlt.integrations.slime.reward --reward-key reward \
  --advantage-estimator grpo --n-samples-per-prompt 64 \
  --rollout-temperature 0.7 --rollout-top-p 1.0
