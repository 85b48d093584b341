"""The `vllm` engine: vLLM in this process, which schedules all requests that it is given."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import count
from typing import Any

from rlt.config import EngineOptions
from rlt.engines.base import Completion, Request, Sampling, budget, cut, empty
from rlt.errors import ConfigError, DataError, DependencyError, RltError, RunError
from rlt.text.tokens import encode

# Requests that wait in vLLM behind those that run, so that no place stays free.
WAITING = 64


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
        self.engine: Any = self.llm.llm_engine
        self.tokenizer = self.llm.get_tokenizer()
        self.context_length: int | None = self.llm.model_config.max_model_len
        # See rlt.engines: on a CPU, seeds end the engine.
        cpu = vllm.platforms.current_platform.is_cpu()
        self.seeded = not cpu if options.send_seeds is None else options.send_seeds
        self.window = self.engine.vllm_config.scheduler_config.max_num_seqs + WAITING
        self.name, self._numbers = f"vllm {vllm.__version__}", count()

    def generate(self, requests: Iterable[Request], sampling: Sampling) -> Iterator[Completion]:
        """See `rlt.engines.base.Engine`. When vLLM refuses a request, those under way still come, then an error."""
        from vllm.exceptions import VLLMClientError, VLLMServerError

        source = iter(requests)
        flying: dict[str, Request] = {}
        failure: RltError | None = None
        exhausted = False
        try:
            while True:
                while failure is None and not exhausted and len(flying) < self.window:
                    request = next(source, None)
                    if request is None:
                        exhausted = True
                        break
                    ids = encode(self.tokenizer, request.prompt)
                    room = budget(len(ids), sampling, self.context_length)
                    if room == 0:
                        yield empty(request, len(ids))
                        continue
                    name = str(next(self._numbers))
                    try:
                        self.engine.add_request(name, {"prompt_token_ids": ids}, self._params(request, room, sampling))
                    except (ValueError, VLLMClientError) as error:
                        failure = DataError(f"request {request.key}: vLLM refuses it ({error}). Leave its row out.")
                        break
                    flying[name] = request
                if not flying:
                    break
                for output in self.engine.step():
                    if not output.finished:
                        continue
                    request = flying.pop(output.request_id)
                    if output.outputs[0].finish_reason in ("stop", "length"):
                        yield self._completion(request, output, sampling)
                    else:
                        reason = output.outputs[0].finish_reason
                        failure = failure or RunError(f"request {request.key}: vLLM ended it with {reason!r}.")
        except VLLMServerError as error:
            reason = " ".join(str(error).split())[:300]
            raise RunError(
                f"vLLM's engine ended ({reason}). What came before is kept; run the command again."
            ) from error
        except GeneratorExit:
            self.engine.abort_request(list(flying))
            raise
        if failure is not None:
            raise failure

    def close(self) -> None:
        """Free the model's memory."""
        self.engine.engine_core.shutdown()
        del self.engine, self.llm

    def _params(self, request: Request, room: int, sampling: Sampling) -> Any:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        return SamplingParams(
            max_tokens=room, temperature=sampling.temperature, top_p=sampling.top_p, top_k=sampling.top_k or 0,
            stop=list(sampling.stop), include_stop_str_in_output=True, skip_special_tokens=False,
            seed=request.seed if self.seeded else None, logprobs=0, output_kind=RequestOutputKind.FINAL_ONLY,
        )  # fmt: skip

    def _completion(self, request: Request, output: Any, sampling: Sampling) -> Completion:
        written = output.outputs[0]
        ids = list(written.token_ids)
        # Ended by an end token, not by a stop string: that token is then the last.
        ended = written.finish_reason == "stop" and not isinstance(written.stop_reason, str)
        kept, text, stopped = cut(self.tokenizer, ids, sampling.stop, set(ids[-1:]) if ended else ())
        total = float(sum(step[token].logprob for token, step in zip(kept, written.logprobs, strict=False)))
        seed = request.seed if self.seeded and sampling.temperature > 0 else None
        reason, prompt_tokens = "stop" if stopped else "length", len(output.prompt_token_ids)
        return Completion(request.key, text, reason, prompt_tokens, len(kept), tuple(kept), total, seed)
