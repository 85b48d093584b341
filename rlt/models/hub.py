"""Whether a model is in a folder or the hub's cache, and whether the hub can be reached. No torch."""

from __future__ import annotations

import json
import os
import socket
from functools import lru_cache
from pathlib import Path
from urllib.parse import urlsplit

from rlt.errors import ModelError
from rlt.types import JsonRow

TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json", "tekken.json", "spiece.model")
PATIENCE = 1.5  # seconds to reach the hub; transformers keeps trying for most of a minute


def is_folder_name(model: str) -> bool:
    """Whether the name must be a folder's: the path exists, or it is not a valid repository name."""
    return Path(model).exists() or model.startswith((".", "/", "~")) or model.count("/") > 1


def config_here(model: str) -> JsonRow | None:
    """A model's config.json, from its folder or the hub's cache; None for a repository that is not cached.

    Raises ModelError for a folder without a model and for a config.json that cannot be read.
    """
    if is_folder_name(model):
        path = Path(model) / "config.json"
        if not path.is_file():
            what = "no such folder" if not Path(model).exists() else "no config.json"
            raise ModelError(f"{model}: not a model folder ({what}).")
    else:
        cached = _cached(model)
        if cached is None:
            return None
        path = cached
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(
            f"{path}: cannot be read ({type(error).__name__}). Download or save the model again."
        ) from error
    if not isinstance(config, dict):
        raise ModelError(f"{path}: not a model configuration. Download or save the model again.")
    return config


def _cached(model: str) -> Path | None:
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        found = try_to_load_from_cache(model, "config.json")
    except HFValidationError as error:
        raise ModelError(f"{model}: neither a folder nor a valid repository name of the hub.") from error
    return Path(found) if isinstance(found, str) else None


def check_can_be_had(model: str) -> None:
    """Raise ModelError, within two seconds, for a model that is not available locally if the hub cannot be reached."""
    if config_here(model) is not None:
        return
    reason = unreachable()
    if reason is not None:
        raise ModelError(f"{model}: no such folder, not in the hub's cache, and {reason}.")


@lru_cache
def unreachable() -> str | None:
    """Why the hub cannot be reached; None if it can, or behind a proxy, where only a request would tell."""
    endpoint = os.environ.get("HF_ENDPOINT") or "https://huggingface.co"
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "TRUE", "YES", "ON"):
        return "HF_HUB_OFFLINE is set"
    if any(os.environ.get(name) for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy")):
        return None
    address = urlsplit(endpoint)
    port = address.port or (80 if address.scheme == "http" else 443)
    try:
        socket.create_connection((address.hostname or "", port), timeout=PATIENCE).close()
    except OSError:
        return f"the hub ({address.hostname}) cannot be reached"
    return None


def folder_problem(folder: Path, tokenizer_only: bool) -> str | None:
    """Why a model, or with `tokenizer_only` a tokenizer, cannot be loaded from a folder; None if it can."""
    if not folder.exists():
        return "not a model folder (no such folder)."
    if not folder.is_dir():
        return "a file, not a model folder."
    if not tokenizer_only and not (folder / "config.json").is_file():
        return "not a model folder (no config.json)."
    if not any((folder / name).exists() for name in TOKENIZERS):
        return "no tokenizer. Save the model's tokenizer into this folder."
    if not tokenizer_only and not any(folder.glob("*.safetensors")):
        return "no weights (only safetensors are loaded)."
    return None


def is_cached(dataset: str) -> bool:
    """Whether a dataset of the hub is cached."""
    home = Path(os.environ.get("HF_HOME") or Path.home() / ".cache" / "huggingface")
    prepared = Path(os.environ.get("HF_DATASETS_CACHE") or home / "datasets") / dataset.replace("/", "___").lower()
    hub = Path(os.environ.get("HF_HUB_CACHE") or home / "hub") / f"datasets--{dataset.replace('/', '--')}"
    return prepared.exists() or hub.exists()
