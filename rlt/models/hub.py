"""Whether a model is here: a folder, or a repository in the hub's cache; whether the hub can be reached. No torch."""

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
PATIENCE = 1.5  # seconds to reach the hub; transformers itself tries for most of a minute


def is_folder_name(model: str) -> bool:
    """Whether the name can only be a folder's: it exists, or no repository on the hub has such a name."""
    return Path(model).exists() or model.startswith((".", "/", "~")) or model.count("/") > 1


def config_here(model: str) -> JsonRow | None:
    """A model's config.json, from its folder or the hub's cache; None for a repository that is not in the cache.

    Raises ModelError for what is not a model folder, and for a config.json that cannot be read.
    """
    if is_folder_name(model):
        path = Path(model) / "config.json"
        if not path.is_file():
            what = "no such folder" if not Path(model).exists() else "no config.json in it"
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
        raise ModelError(f"{path}: not a model's configuration. Download or save the model again.")
    return config


def _cached(model: str) -> Path | None:
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        found = try_to_load_from_cache(model, "config.json")
    except HFValidationError as error:
        raise ModelError(f"{model}: neither a folder nor the name of a repository on the hub.") from error
    return Path(found) if isinstance(found, str) else None


def check_can_be_had(model: str) -> None:
    """Raises ModelError, within two seconds, for a model that is neither here nor on a hub that can be reached."""
    if config_here(model) is not None:
        return
    reason = unreachable()
    if reason is not None:
        raise ModelError(f"{model}: no such folder, not in the hub's cache, and {reason}.")


@lru_cache
def unreachable() -> str | None:
    """Why the hub cannot be reached; None where it can, or where a proxy stands before it, so that only a request tells."""
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
    """Why no model, or with `tokenizer_only` no tokenizer, can be loaded from a folder; None where it can."""
    if not folder.exists():
        return "not a model folder (no such folder)."
    if not folder.is_dir():
        return "not a model folder, but a file."
    if not tokenizer_only and not (folder / "config.json").is_file():
        return "not a model folder (no config.json in it)."
    if not any((folder / name).exists() for name in TOKENIZERS):
        return "has no tokenizer. Save the model's tokenizer into its folder."
    if not tokenizer_only and not any(folder.glob("*.safetensors")):
        return "has no weights (safetensors only)."
    return None


def is_cached(dataset: str) -> bool:
    """Whether a dataset of the hub is in the cache."""
    home = Path(os.environ.get("HF_HOME") or Path.home() / ".cache" / "huggingface")
    prepared = Path(os.environ.get("HF_DATASETS_CACHE") or home / "datasets") / dataset.replace("/", "___").lower()
    hub = Path(os.environ.get("HF_HUB_CACHE") or home / "hub") / f"datasets--{dataset.replace('/', '--')}"
    return prepared.exists() or hub.exists()
