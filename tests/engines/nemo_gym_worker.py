"""Runs in NeMo Gym's environment: its simple agent against rlt's resources server, with a model that stands in for vLLM."""

import json
import os
import sys
import warnings

warnings.simplefilter("ignore")

from fastapi import FastAPI  # noqa: E402
from fastapi.testclient import TestClient  # noqa: E402
from nemo_gym.config_types import ModelServerRef, ResourcesServerRef  # noqa: E402
from nemo_gym.openai_utils import (  # noqa: E402
    NeMoGymResponse,
    NeMoGymResponseOutputMessageForTraining,
    NeMoGymResponseOutputText,
)
from nemo_gym.server_utils import ServerClient  # noqa: E402
from omegaconf import OmegaConf  # noqa: E402
from responses_api_agents.simple_agent.app import SimpleAgent, SimpleAgentConfig  # noqa: E402

import rlt.integrations.service as service  # noqa: E402
from rlt.integrations.nemo_gym import TeacherRewardServer  # noqa: E402

PLACE = {"host": "127.0.0.1", "port": 1, "entrypoint": "app.py"}


class Answer:
    """An answer of a TestClient in the form of aiohttp's, as NeMo Gym's client gives it."""

    def __init__(self, answer):
        self.answer, self.ok, self.cookies = answer, answer.is_success, dict(answer.cookies)

    async def read(self):
        return self.answer.content

    @property
    def content(self):
        return self

    def raise_for_status(self):
        from aiohttp import ClientResponseError

        raise ClientResponseError(None, (), status=self.answer.status_code, message=self.answer.text)


class Local(ServerClient):
    """NeMo Gym's client, for servers of this process."""

    servers: dict = {}

    async def request(self, server_name, url_path, method, **options):
        import asyncio

        body = options.get("json")
        body = body.model_dump(mode="json", exclude_unset=True) if hasattr(body, "model_dump") else body
        client = TestClient(self.servers[server_name], raise_server_exceptions=False)
        return Answer(await asyncio.to_thread(client.request, method, url_path, json=body))


def model_of(row):
    """A model server that answers with the row's tokens."""
    app = FastAPI()

    @app.post("/v1/responses")
    async def responses(body: dict):
        message = NeMoGymResponseOutputMessageForTraining(
            id="0", role="assistant", type="message", status="completed",
            content=[NeMoGymResponseOutputText(type="output_text", text=row["completion"], annotations=[])],
            prompt_token_ids=[1], generation_token_ids=row["token_ids"], generation_log_probs=row["logprobs"],
        )  # fmt: skip
        return NeMoGymResponse(
            id="0", created_at=0.0, model="m", object="response", output=[message], parallel_tool_calls=False,
            tool_choice="none", tools=[],
        )  # fmt: skip

    return app


def rollout(row, sampling):
    servers = Local(head_server_config={"host": "127.0.0.1", "port": 1}, global_config_dict=OmegaConf.create())
    agent = SimpleAgent(
        config=SimpleAgentConfig(
            name="agent", **PLACE, resources_server=ResourcesServerRef(type="resources_servers", name="rlt"),
            model_server=ModelServerRef(type="responses_api_models", name="model"),
        ),
        server_client=servers,
    )  # fmt: skip
    from nemo_gym.base_resources_server import BaseResourcesServerConfig

    reward = TeacherRewardServer(config=BaseResourcesServerConfig(name="rlt", **PLACE), server_client=servers)
    servers.servers = {"agent": web(agent), "rlt": web(reward), "model": model_of(row)}
    task = {"responses_create_params": {"input": "?", "temperature": 0.7, **sampling}, **json.loads(row["label"])}
    answer = TestClient(servers.servers["agent"]).post("/run", json=task)
    if not answer.is_success:
        raise RuntimeError(answer.text)
    return answer.json()


def web(server):
    """The server's application, as its own `run_webserver` makes it."""
    app = server.setup_webserver()
    server.setup_exception_middleware(app)
    return app


def case(given):
    os.environ.update(given["environment"])
    service.RewardService.from_environment.__func__.cache_clear()
    try:
        answers = [rollout(row, given["sampling"]) for row in given["rows"]]
    except RuntimeError as error:
        return {"error": str(error)}
    return {"rewards": [answer["reward"] for answer in answers], "info": answers}


job = json.load(sys.stdin)
results = [case(given) for given in job["cases"]]
print()
print(json.dumps(results))
