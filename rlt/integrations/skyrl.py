"""rlt's reward as a SkyRL environment of one turn, for formats whose solution stands in the user's turn.

    skyrl_gym.register(id="rlt", entry_point="rlt.integrations.skyrl:TeacherEnv")

SkyRL hands an environment the text alone, so r_kl comes from the service's `--teacher`. See docs/integrations/skyrl.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from skyrl_gym.envs.base_text_env import BaseTextEnv, BaseTextEnvStepOutput

from rlt.integrations.service import LOGGED, RewardService, labelled


class TeacherEnv(BaseTextEnv):
    """An explanation of the problem in `reward_spec.ground_truth`, a JSON label. RLT_URL names the service.

    Raises ServiceError for another label.
    """

    def __init__(self, env_config: object = None, extras: Mapping[str, Any] | None = None) -> None:
        super().__init__()
        self.problem = labelled(((extras or {}).get("reward_spec") or {}).get("ground_truth"))
        self.service = RewardService.from_environment()
        self.parts: dict[str, float] = {}

    def step(self, action: str) -> BaseTextEnvStepOutput:
        """The reward of the explanation `action`; the episode is over. Raises ServiceError where there is none."""
        (scored,) = self.service.score([{**self.problem, "completion": action}])
        reward = self.service.number(scored)
        self.parts = {f"rlt/{name}": float(scored[name]) for name in LOGGED if scored.get(name) is not None}
        return BaseTextEnvStepOutput(observations=[], reward=reward, done=True, metadata={})

    def get_metrics(self) -> dict[str, float]:
        """The parts of the reward."""
        return self.parts
