#!/usr/bin/env bash
# Teacher RL with OpenRLHF and rlt's reward: openrlhf.sh TEACHER PROMPTS.jsonl OUTPUT. Needs GPUs; it was not run.
#
# RLT_URL names the running `rlt serve`. PROMPTS.jsonl: `python -m rlt.integrations.prompts --data ... --model TEACHER`.
set -euo pipefail
: "${RLT_URL:?the address of a running rlt serve}"
packages=$(python -c "import rlt.integrations as package; print(package.__path__[0])")

python -m openrlhf.cli.train_ppo_ray \
  --actor.model_name_or_path "$1" \
  --data.prompt_dataset "$2" --data.input_key prompt --data.label_key label \
  --ckpt.output_dir "$3" \
  --train.agent_func_path "$packages/openrlhf.py" \
  --algo.advantage.estimator group_norm --algo.advantage.is_correction_level token \
  --rollout.n_samples_per_prompt 64 --rollout.temperature 0.7 --rollout.top_p 1.0
