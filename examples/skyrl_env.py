"""One episode of rlt's environment in SkyRL's registry, with the reward of a running service.

    rlt serve --student STUDENT --format stratos-user --port 8100
    RLT_URL=http://127.0.0.1:8100 .venv-verl/bin/python examples/skyrl_env.py

Runs in the environment of `make engines`, without a GPU.
"""

from __future__ import annotations

import json

import skyrl_gym

LABEL = json.dumps({"question": "What is 2 + 3?", "solution": "2 + 3 = 5."})

skyrl_gym.register(id="rlt", entry_point="rlt.integrations.skyrl:TeacherEnv")
env = skyrl_gym.make("rlt", env_config={}, extras={"reward_spec": {"ground_truth": LABEL}})
step = env.step("Start at two and count three on: three, four, five.\n\n<|end_of_explanation|>")
print(f"reward {step['reward']:.3f}, done {step['done']}, {env.get_metrics()}")
