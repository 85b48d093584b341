"""Assumptions of a plan, each number with its source."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from rlt.config import Config


class PlanConfig(Config):
    """Assumptions of `rlt plan`. `--assumptions` prints every value."""

    gpu: str
    """Name of the GPU, such as `h100-80gb` or `rtx4090-24gb`; an unknown name prints the list."""
    count: int = Field(1, ge=1)
    """GPUs of the machine or cluster, including those that sample."""
    price_per_hour: float | None = Field(None, ge=0)
    """Price of one GPU-hour, in any currency; null: no cost is printed."""
    assumptions: bool = False
    """Also print memory by part, hours by part, and every assumption with its source."""
    sampler_gpus: int | None = Field(None, ge=1)
    """GPUs that serve vLLM for a trainer with `vllm_mode: server`; null: those that its batch does not need, or half."""
    rows: int | None = Field(None, ge=1)
    """Number of rows of each dataset that is neither a local file nor known."""
    question_tokens: int = Field(300, ge=1)
    """Mean tokens of system prompt and question (Bespoke-Stratos' system prompt alone has about 150)."""
    solution_tokens: int = Field(400, ge=1)
    """Mean tokens of a worked solution (about 200 in MATH, about 500 in the solution part of an R1 response)."""
    explanation_tokens: int = Field(5000, ge=1)
    """Mean tokens of a teacher's explanation. Not published; the published costs suggest 5,000 to 6,000."""
    trace_tokens: int = Field(3500, ge=1)
    """Mean tokens of an explanation in given data (public estimate: 67M tokens in Bespoke-Stratos-17k)."""
    response_tokens: int = Field(5000, ge=1)
    """Mean tokens of a student's response: explanation and solution."""
    length_spread: float = Field(0.55, ge=0)
    """Standard deviation of lengths, divided by their mean (0.55 in 200 MATH-500 responses of a Sky-T1 model)."""
    utilisation: float = Field(0.3, gt=0, le=1)
    """Share of the GPU's peak that training and scoring reach (public logs, 1B to 8B models on 8 H100: 0.2 to 0.4)."""
    decode_efficiency: float = Field(0.5, gt=0, le=1)
    """Share of memory bandwidth that decoding reaches on the GPU."""
    step_overhead_ms: float = Field(8.0, ge=0)
    """Milliseconds that vLLM adds per decoding step: scheduling, sampling, launching, detokenizing."""
    padding: Literal["generation", "micro-batch"] = "micro-batch"
    """What RL pads completions to: the longest in the micro-batch (rlt), or in the process's generation (TRL)."""
    max_num_seqs: int = Field(256, ge=1)
    """Maximum number of sequences that a vLLM engine decodes at once, if its KV cache has room."""
    overhead_gib: float = Field(1.5, ge=0)
    """GiB per GPU for the CUDA context and the workspaces of NCCL and cuBLAS."""
    fragmentation: float = Field(0.05, ge=0, lt=1)
    """Share of allocated memory lost to fragmentation."""
    pcie_gb_per_s: float = Field(25.0, gt=0)
    """GB/s between a GPU and the host, for offloading."""
    host_gb_per_s: float = Field(100.0, gt=0)
    """GB/s of host memory, for an optimiser that steps on the CPU."""


class Fixed(Config):
    """Assumptions without a flag; `--assumptions` prints them too."""

    zero3_live: int = 10**9
    """Maximum number of parameters that ZeRO-3 keeps gathered (DeepSpeed's default of stage3_max_live_parameters)."""
    logits_tile: int = 4096 * 32768
    """Tokens x vocabulary of the one tile of logits that exists at a time (TRL's fused output layer)."""
    score_tokens: int = 32768
    """Tokens per scoring pass on a GPU, unless the recipe sets `batch_tokens` (rlt.models.logprobs)."""
    response_limit: int = 32768
    """Maximum number of tokens of a response, unless an evaluate step sets `max_tokens`."""
    vllm_share: float = 0.92
    """Share of a GPU's memory that vLLM takes, unless the recipe sets it (default of vLLM 0.32)."""
    colocated_share: float = 0.3
    """The same for vLLM inside the trainer (TRL's default of vllm_gpu_memory_utilization)."""
    layer_launch_ms: float = 1.0
    """Minimum milliseconds per layer and decoding step of transformers' generation: Python and kernel launches."""
    adam_host_bytes: int = 28
    """Bytes moved per parameter by a step of Adam on the CPU: three float32 states in and out, one gradient in."""
    gpus_per_node: int = 8
    """GPUs that share the memory of one host."""
    text_bytes: int = 4
    """Bytes per token of text on disk."""
    known_rows: dict[str, int] = {
        "bespokelabs/Bespoke-Stratos-17k": 16710,
        "openai/gsm8k": 7473,
        "gsm8k": 1319,
        "aime24": 30,
        "math500": 500,
        "gpqa-diamond": 198,
        "olympiadbench-maths": 674,
        "olympiadbench-physics": 236,
        "livecodebench:hard": 300,  # ours: it depends on the release
    }
    """Rows of datasets and benchmarks that recipes refer to by their hub name."""


FIXED = Fixed()
