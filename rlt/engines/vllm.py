"""The `vllm` engine: vLLM in this process; its scheduler batches the requests."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from itertools import count
from typing import TYPE_CHECKING

from rlt.config import EngineOptions
from rlt.engines.base import Completion, InFlight, Request, Sampling, cut
from rlt.errors import ConfigError, DataError, DependencyError, RunError

if TYPE_CHECKING:
    from vllm import RequestOutput, SamplingParams

# Requests queued in vLLM behind the running ones, so that no slot stays empty.
WAITING = 64


class VllmEngine:
    """Continues prompts with `vllm.LLM(model, **engine_options)`: tensor_parallel_size, gpu_memory_utilization, ...

    vLLM's sampler uses each request's seed, but its logits depend on the rest of the batch.
    """

    def __init__(
        self, options: EngineOptions, model: str, *, dtype: str = "auto", trust_remote_code: bool = False
    ) -> None:
        try:
            import vllm
        except ImportError as error:
            raise DependencyError("the engine `vllm` needs vLLM: pip install 'rlt[vllm]'") from error
        try:
            self.llm = vllm.LLM(
                model, dtype=dtype, trust_remote_code=trust_remote_code, load_format="safetensors",
                generation_config="vllm", **options.engine_options,
            )  # fmt: skip
        except TypeError as error:
            raise ConfigError(f"`engine_options`: {error}") from error
        self.engine = self.llm.llm_engine
        self.tokenizer = self.llm.get_tokenizer()
        self.context_length: int | None = self.llm.model_config.max_model_len
        # On a CPU, seeds can crash vLLM: see rlt.engines.
        cpu = vllm.platforms.current_platform.is_cpu()
        self.seeded = not cpu if options.send_seeds is None else options.send_seeds
        self.window = self.engine.vllm_config.scheduler_config.max_num_seqs + WAITING
        self.name, self.numbers = f"vllm {vllm.__version__}", count()

    def generate(self, requests: Iterable[Request], sampling: Sampling) -> Iterator[Completion]:
        """See `rlt.engines.base.Engine`. If vLLM rejects a request, those in flight complete before the error."""
        return _InVllm(self, sampling).completions(requests, sampling)

    def close(self) -> None:
        """Free the model's memory."""
        self.engine.engine_core.shutdown()
        del self.engine, self.llm

    def params(self, request: Request, room: int, sampling: Sampling) -> SamplingParams:
        """vLLM's sampling parameters for a request."""
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        return SamplingParams(
            max_tokens=room, temperature=sampling.temperature, top_p=sampling.top_p, top_k=sampling.top_k or 0,
            stop=list(sampling.stop), include_stop_str_in_output=True, skip_special_tokens=False,
            seed=request.seed if self.seeded else None, logprobs=0, output_kind=RequestOutputKind.FINAL_ONLY,
        )  # fmt: skip

    def completion(self, request: Request, output: RequestOutput, sampling: Sampling) -> Completion:
        """The completion in vLLM's output; raises RunError for a finish reason other than stop or length."""
        written = output.outputs[0]
        if written.finish_reason not in ("stop", "length"):
            raise RunError(f"request {request.key}: vLLM ended it with finish reason {written.finish_reason!r}.")
        ids = list(written.token_ids)
        # If an end token ended it, not a stop string, that token is the last one.
        ended = written.finish_reason == "stop" and not isinstance(written.stop_reason, str)
        kept, text, stopped = cut(self.tokenizer, ids, sampling.stop, set(ids[-1:]) if ended else ())
        total = float(sum(step[token].logprob for token, step in zip(kept, written.logprobs, strict=False)))
        seed = request.seed if self.seeded and sampling.temperature > 0 else None
        reason, prompt_tokens = "stop" if stopped else "length", len(output.prompt_token_ids)
        return Completion(request.key, text, reason, prompt_tokens, len(kept), tuple(kept), total, seed)


class _InVllm(InFlight[str, object]):
    """Requests in flight in vLLM's scheduler, under a number each."""

    def __init__(self, engine: VllmEngine, sampling: Sampling) -> None:
        super().__init__(engine.tokenizer, engine.context_length, engine.window, ids=True)
        self.engine, self.sampling = engine, sampling

    def start(self, request: Request, ids: list[int], room: int) -> str:
        from vllm.exceptions import VLLMClientError

        name = str(next(self.engine.numbers))
        try:
            params = self.engine.params(request, room, self.sampling)
            self.engine.engine.add_request(name, {"prompt_token_ids": ids}, params)
        except (ValueError, VLLMClientError) as error:
            raise DataError(f"request {request.key}: vLLM rejects it ({error}). Drop its row.") from error
        return name

    def ended(self) -> list[tuple[str, RequestOutput]]:
        from vllm.exceptions import VLLMServerError

        try:
            outputs = self.engine.engine.step()
        except VLLMServerError as error:
            reason = " ".join(str(error).split())[:300]
            raise RunError(
                f"vLLM's engine died ({reason}). Finished completions are kept; run the command again."
            ) from error
        return [(output.request_id, output) for output in outputs if output.finished]

    def completion(self, request: Request, prompt_tokens: int, answer: RequestOutput) -> Completion:
        return self.engine.completion(request, answer, self.sampling)

    def abandon(self, tickets: Iterable[str]) -> None:
        from vllm.exceptions import VLLMServerError

        with contextlib.suppress(VLLMServerError):  # the engine is dead: nothing left to abort
            self.engine.engine.abort_request(list(tickets))
