"""Runs in verifiers' environment: traces as its own graph records them, scored by its own `Task.score`."""

import asyncio
import json
import os
import sys

import verifiers.v1 as vf
from verifiers.v1.configs.agent import AgentConfig
from verifiers.v1.configs.task import RewardFunctionConfig, TaskConfig
from verifiers.v1.errors import TaskError
from verifiers.v1.graph import prepare_turn
from verifiers.v1.task import WireTaskData
from verifiers.v1.trace import AgentInfo, ModelCall, Trace, TraceTask
from verifiers.v1.types import AssistantMessage, Response, Sampling, TurnTokens, UserMessage
from verifiers.v1.utils.loaders import resolve_env_config

import rlt.integrations.service as service
from rlt.integrations.verifiers import TeacherTaskset


def trace_of(task, row, sampling):
    """A trace of one turn (or of `turns`) with the tokens of the row."""
    trace = Trace(task=TraceTask(type=type(task).__name__, data=task.data), agent=AgentInfo(config=AgentConfig()))
    messages = [UserMessage(content=task.data.prompt)]
    before = [1, 2, 3]
    for _ in range(row.get("turns", 1)):
        tokens = None
        if "token_ids" in row:
            tokens = TurnTokens(prompt_ids=before, completion_ids=row["token_ids"], completion_logprobs=row["logprobs"])
        message = AssistantMessage(content=row["completion"])
        answer = Response(id="0", created=0, model="m", message=message, finish_reason="stop", tokens=tokens)
        node = prepare_turn(trace, messages).commit(answer)
        trace.calls.append(ModelCall(node=node, model="m", sampling=Sampling(**sampling)))
        messages = [*messages, message, UserMessage(content="again")]
        before = [*before, *row.get("token_ids", []), 4]
    return trace


def tasks_of(given):
    """Tasks of the shipped taskset, or plain ones with the reward function plugged in by its name."""
    if "data" in given:
        config = resolve_env_config({"taskset": {"id": "rlt_teacher", "data": given["data"]}}).taskset
        return list(TeacherTaskset(config))
    config = TaskConfig(rewards={"rlt": RewardFunctionConfig(fn="rlt.integrations.verifiers:rlt")})
    return [vf.Task(WireTaskData(prompt="?", **json.loads(row["label"])), config) for row in given["rows"]]


async def case(given):
    os.environ.update(given["environment"])
    service.RewardService.from_environment.__func__.cache_clear()
    rewards, metrics = [], []
    try:
        for task, row in zip(tasks_of(given), given["rows"], strict=True):
            trace = trace_of(task, row, {"temperature": 0.7, **given["sampling"]})
            await task.score(trace)
            rewards.append(trace.rewards["rlt"].value)
            metrics.append(trace.metrics)
    except (TaskError, ValueError) as error:
        return {"error": str(error)}
    return {"rewards": rewards, "info": metrics}


job = json.load(sys.stdin)
found = [name for name in ("torch", "transformers") if name in sys.modules]
print(json.dumps([asyncio.run(case(given)) for given in job["cases"]] + [{"imported": found}]))
