"""rlt's reward in NeMo Gym: a resources server that calls a running `rlt serve`.

See docs/integrations/nemo_gym.md. Its environment needs only NeMo Gym and this package (`pip install --no-deps rlt`).
"""

from __future__ import annotations

from nemo_gym.base_resources_server import (
    BaseResourcesServerConfig,
    BaseVerifyRequest,
    BaseVerifyResponse,
    SimpleResourcesServer,
)
from pydantic import ConfigDict

from rlt.integrations.service import RewardService, whole_distribution


class VerifyRequest(BaseVerifyRequest):
    """A row of the dataset, with `question` and `solution`, and the policy's response."""

    model_config = ConfigDict(extra="allow")

    question: str
    solution: str


class VerifyResponse(BaseVerifyResponse):
    """The request with its reward and the reward's parts."""

    model_config = ConfigDict(extra="allow")


class TeacherRewardServer(SimpleResourcesServer):
    """`/verify` returns the service's answer, after retries; a row without a reward fails the request.

    r_kl is computed from `generation_token_ids` and `generation_log_probs`, which NeMo Gym's training models add.
    """

    config: BaseResourcesServerConfig

    async def verify(self, body: VerifyRequest) -> VerifyResponse:
        whole_distribution("NeMo Gym", body.responses_create_params.top_p, None)
        answer = await RewardService.from_environment().post("/verify", body.model_dump(mode="json"))
        return VerifyResponse.model_validate(answer)
