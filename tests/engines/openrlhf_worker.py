"""Runs in OpenRLHF's environment: its executors and its samples generator, with answers that stand in for vLLM's."""

import asyncio
import json
import os
import sys
from types import ModuleType, SimpleNamespace

# vLLM is the one import that needs a GPU build; nothing of it is called here.
for name, contents in {
    "vllm": {"SamplingParams": SimpleNamespace, "__version__": "0.29.0"},
    "vllm.inputs": {"TokensPrompt": dict},
    "vllm.utils": {"random_uuid": lambda: "0"},
}.items():
    sys.modules[name] = ModuleType(name)
    vars(sys.modules[name]).update(contents)

from openrlhf.trainer.ppo_utils.samples_generator import SamplesGenerator  # noqa: E402
from openrlhf.trainer.ray.vllm_engine import _load_agent_executor  # noqa: E402
from openrlhf.utils.agent import SingleTurnAgentExecutor  # noqa: E402
from transformers import AutoTokenizer  # noqa: E402

import rlt.integrations.service as service  # noqa: E402


class Vllm:
    """Answers with the row's tokens."""

    def __init__(self, row):
        self.row = row

    async def generate(self, prompt_ids, sampling_params, multi_modal_data=None):
        ids, values = self.row["token_ids"], self.row["logprobs"]
        logprobs = None
        if sampling_params.logprobs is not None:
            logprobs = [{i: SimpleNamespace(logprob=v)} for i, v in zip(ids, values, strict=True)]
        return SimpleNamespace(
            outputs=[SimpleNamespace(token_ids=ids, text="", finish_reason="stop", logprobs=logprobs)]
        )


async def execute(executor, row, tokenizer, more):
    sampling = {"temperature": 0.7, "top_p": 1.0, "top_k": -1, "max_tokens": 64, "logprobs": 1} | more
    return await executor.execute(row["prompt"], row["label"], SimpleNamespace(**sampling), 4096, tokenizer, Vllm(row))


def case(given, tokenizer):
    os.environ.update(given["environment"])
    service.RewardService.from_environment.__func__.cache_clear()
    try:
        if "remote_url" in given:
            executor = SingleTurnAgentExecutor(given["remote_url"])
        else:
            executor = _load_agent_executor(given["agent"])
        outputs = [asyncio.run(execute(executor, row, tokenizer, given["sampling"])) for row in given["rows"]]
        samples = [SamplesGenerator._process_response_into_experience(None, output) for output in outputs]
    except service.ServiceError as error:
        return {"error": str(error)}
    return {
        "rewards": [
            None if sample.rewards is None else output["reward"]
            for sample, output in zip(samples, outputs, strict=True)
        ],
        "info": [{name: float(value) for name, value in sample.info.items()} for sample in samples],
    }


job = json.load(sys.stdin)
tokenizer = AutoTokenizer.from_pretrained(job["tokenizer"])
print(json.dumps([case(given, tokenizer) for given in job["cases"]]))
