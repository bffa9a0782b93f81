"""One tiny Llama: its config.json for whatever reads one, and the model itself."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM

TINY_LLAMA: dict[str, Any] = {
    "model_type": "llama",
    "vocab_size": 50,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "dtype": "float16",
}


def write_config(path: Path, **changes: Any) -> Path:
    """Write the tiny Llama's config.json, with other values for some keys; returns its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(TINY_LLAMA | changes))
    return path


def llama(**changes: Any) -> LlamaForCausalLM:
    """The tiny Llama with random float32 weights."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    model: LlamaForCausalLM = LlamaForCausalLM(LlamaConfig(**TINY_LLAMA | {"dtype": "float32"} | changes))
    return model.to(torch.float32).eval()
