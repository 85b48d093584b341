"""What a plan assumes: each number with its source."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from rlt.config import Config


class PlanConfig(Config):
    """What `rlt plan` assumes; every value is printed with the plan."""

    gpu: str
    """Name of the GPU (`h100-80gb`, `rtx4090-24gb`, ...; a wrong name lists them)."""
    count: int = Field(1, ge=1)
    """GPUs of the machine or cluster, samplers included."""
    price_per_hour: float | None = Field(None, ge=0)
    """Price of one GPU for one hour, in any currency; null: no cost is printed."""
    sampler_gpus: int | None = Field(None, ge=1)
    """GPUs of these that serve vLLM where the trainer samples from a server; null: what the batch leaves, or half."""
    rows: int | None = Field(None, ge=1)
    """Rows of data sets that can be neither counted here nor looked up."""
    question_tokens: int = Field(300, ge=1)
    """Mean tokens of system prompt and question (Bespoke-Stratos' system prompt alone has about 150)."""
    solution_tokens: int = Field(400, ge=1)
    """Mean tokens of a worked solution (MATH's have about 200, the solution part of an R1 response about 500)."""
    explanation_tokens: int = Field(5000, ge=1)
    """Mean tokens of an explanation that the teacher writes. Not published; the published costs fit 5,000 to 6,000."""
    trace_tokens: int = Field(3500, ge=1)
    """Mean tokens of an explanation in given data (public estimate: Bespoke-Stratos-17k has 67M tokens in all)."""
    response_tokens: int = Field(5000, ge=1)
    """Mean tokens of a student's response: explanation and solution."""
    length_spread: float = Field(0.55, ge=0)
    """Standard deviation of lengths over their mean (0.55 in 200 responses of a Sky-T1 model to MATH-500)."""
    utilisation: float = Field(0.3, gt=0, le=1)
    """Share of the GPU's peak that training and scoring reach (public logs, 1B to 8B models on 8 H100: 0.2 to 0.4)."""
    decode_efficiency: float = Field(0.5, gt=0, le=1)
    """Share of memory bandwidth that decoding reaches while it runs on the GPU."""
    step_overhead_ms: float = Field(8.0, ge=0)
    """Milliseconds that vLLM needs for a decoding step besides: scheduling, sampling, launching, detokenizing."""
    padding: Literal["generation", "micro-batch"] = "micro-batch"
    """What the RL trainer pads completions to: the longest of a process's generation (TRL), or of the micro-batch."""
    max_num_seqs: int = Field(256, ge=1)
    """Most sequences that one vLLM engine decodes at once, where its KV cache has room."""
    overhead_gib: float = Field(1.5, ge=0)
    """GiB of each GPU for the CUDA context, NCCL and cuBLAS workspaces."""
    fragmentation: float = Field(0.05, ge=0, lt=1)
    """Share of allocated memory that the allocator loses to fragmentation."""
    pcie_gb_per_s: float = Field(25.0, gt=0)
    """GB/s between one GPU and the host, for what is offloaded."""
    host_gb_per_s: float = Field(100.0, gt=0)
    """GB/s of the host's memory, for an optimiser that steps on the CPU."""


class Fixed(Config):
    """Numbers of a plan that are no flags; each is printed with it too."""

    zero3_live: int = 10**9
    """Parameters that DeepSpeed's ZeRO-3 keeps gathered at most (its default of stage3_max_live_parameters)."""
    logits_tile: int = 4096 * 32768
    """Tokens x vocabulary of the only logits that exist at one time (TRL's fused output layer)."""
    score_tokens: int = 32768
    """Tokens of one scoring pass on a GPU where the recipe has no `batch_tokens` (rlt.models.logprobs)."""
    response_limit: int = 32768
    """Most tokens of a response where an evaluate step has no `max_tokens`."""
    vllm_share: float = 0.92
    """Share of a GPU's memory that vLLM takes where the recipe gives none (vLLM 0.32)."""
    colocated_share: float = 0.3
    """The same for a vLLM inside the trainer (TRL's default of vllm_gpu_memory_utilization)."""
    layer_launch_ms: float = 1.0
    """Milliseconds that transformers' generation needs for each layer and step at least: Python and kernel launches."""
    adam_host_bytes: int = 28
    """Bytes that a step of Adam on the CPU moves for a parameter: three float32 states in and out, one gradient in."""
    gpus_a_node: int = 8
    """GPUs that share one host's memory."""
    text_bytes: int = 4
    """Bytes of a token as text in files."""
    known_rows: dict[str, int] = {
        "bespokelabs/Bespoke-Stratos-17k": 16710,
        "openai/gsm8k": 7473,
        "gsm8k": 1319,
        "aime24": 30,
        "math500": 500,
        "gpqa-diamond": 198,
    }
    """Rows of the data sets and benchmarks that recipes name by their hub name."""


FIXED = Fixed()
