"""The `vllm` engine: vLLM in this process, which schedules all requests that it is given."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

from rlt.config import EngineOptions
from rlt.errors import ConfigError, DependencyError
from rlt.generation import Completion, Request, Sampling, budget, cut

# Requests handed to vLLM at once: enough to keep its scheduler full, few enough to keep what is done.
WINDOW = 1024


class EmbeddedEngine:
    """Continues prompts with `vllm.LLM(model, **engine_options)`: tensor_parallel_size, gpu_memory_utilization, ...

    vLLM's own sampler draws with each request's seed; its numbers depend on what is batched together.
    """

    def __init__(
        self, options: EngineOptions, model: str, *, dtype: str = "auto", trust_remote_code: bool = False
    ) -> None:
        try:
            import vllm
        except ImportError as error:
            raise DependencyError("the engine `vllm` needs vLLM: pip install 'rlt[vllm]'") from error
        try:
            self.llm: Any = vllm.LLM(
                model, dtype=dtype, trust_remote_code=trust_remote_code, load_format="safetensors",
                generation_config="vllm", **options.engine_options,
            )  # fmt: skip
        except TypeError as error:
            raise ConfigError(f"`engine_options`: {error}") from error
        self.tokenizer = self.llm.get_tokenizer()
        self.context_length: int | None = self.llm.model_config.max_model_len
        # See rlt.engines: on a CPU, seeds end the engine.
        cpu = vllm.platforms.current_platform.is_cpu()
        self.seeded = not cpu if options.send_seeds is None else options.send_seeds
        self.name = f"vllm {vllm.__version__}"

    def generate(self, requests: Iterable[Request], sampling: Sampling) -> Iterator[Completion]:
        """See `rlt.generation.Engine`; completions come a window of requests at a time."""
        from vllm import SamplingParams

        source = iter(requests)
        while window := list(islice(source, WINDOW)):
            encoded = self.tokenizer([r.prompt for r in window], add_special_tokens=False)["input_ids"]
            asked, prompts, params = [], [], []
            for request, ids in zip(window, encoded, strict=True):
                room = budget(len(ids), sampling, self.context_length)
                if room == 0:
                    yield Completion(request.key, "", "length", len(ids), 0, (), 0.0)
                    continue
                asked.append(request)
                prompts.append({"prompt_token_ids": ids})
                params.append(
                    SamplingParams(
                        max_tokens=room, temperature=sampling.temperature, top_p=sampling.top_p,
                        top_k=sampling.top_k or 0, stop=list(sampling.stop), include_stop_str_in_output=True,
                        skip_special_tokens=False, seed=request.seed if self.seeded else None, logprobs=0,
                    )
                )  # fmt: skip
            outputs = self.llm.generate(prompts, params, use_tqdm=False) if prompts else []
            for request, output in zip(asked, outputs, strict=True):
                yield self._completion(request, output, sampling)

    def close(self) -> None:
        """Free the model's memory."""
        del self.llm

    def _completion(self, request: Request, output: Any, sampling: Sampling) -> Completion:
        written = output.outputs[0]
        ids = list(written.token_ids)
        # Ended by an end token, not by a stop string: that token is then the last.
        ended = written.finish_reason == "stop" and not isinstance(written.stop_reason, str)
        kept, text, stopped = cut(self.tokenizer, ids, sampling.stop, set(ids[-1:]) if ended else ())
        total = float(sum(step[token].logprob for token, step in zip(kept, written.logprobs, strict=False)))
        prompt_tokens = len(output.prompt_token_ids)
        reason = "stop" if stopped else "length"
        return Completion(request.key, text, reason, prompt_tokens, len(kept), tuple(kept), total)
