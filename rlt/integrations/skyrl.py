"""rlt's reward as a SkyRL environment of one turn, for formats with the solution in the user's turn.

    skyrl_gym.register(id="rlt", entry_point="rlt.integrations.skyrl:TeacherEnv")

SkyRL gives an environment only text, so r_kl is computed by the service's `--teacher`. See docs/integrations/skyrl.md.
"""

from __future__ import annotations

from collections.abc import Mapping

from skyrl_gym.envs.base_text_env import BaseTextEnv, BaseTextEnvStepOutput

from rlt.integrations.service import RewardService, labelled, parts_of


class TeacherEnv(BaseTextEnv):
    """An explanation of the problem in `reward_spec.ground_truth`, a JSON label. RLT_URL is the service's address.

    Raises ServiceError for any other label.
    """

    def __init__(
        self, env_config: object = None, extras: Mapping[str, Mapping[str, object] | None] | None = None
    ) -> None:
        super().__init__()
        self.problem = labelled(((extras or {}).get("reward_spec") or {}).get("ground_truth"))
        self.service = RewardService.from_environment()
        self.parts: dict[str, float] = {}

    def step(self, action: str) -> BaseTextEnvStepOutput:
        """The reward of the explanation `action`, which ends the episode. Raises ServiceError if there is none."""
        (scored,) = self.service.score([{**self.problem, "completion": action}])
        reward = self.service.number(scored)
        self.parts = {f"rlt/{name}": value for name, value in parts_of(scored).items()}
        return BaseTextEnvStepOutput(observations=[], reward=reward, done=True, metadata={})

    def get_metrics(self) -> dict[str, float]:
        """The parts of the reward."""
        return self.parts
