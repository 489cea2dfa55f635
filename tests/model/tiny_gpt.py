"""Constructor arguments of two tiny models: one with every flag on, one with none."""

from typing import Any

EVERYTHING: dict[str, Any] = {
    "depth": 4,
    "width": 32,
    "heads": 4,
    "kv_heads": 2,
    "vocab_size": 70,
    "context": 256,
    "rope_base": 100_000.0,
    "window_pattern": "SSSL",
    "value_embeddings": True,
    "residual_scalars": True,
    "smear": True,
    "backout": True,
    "qk_scale": 1.2,
    "softcap": 15.0,
    "initialization": "modern",
    "vocab_multiple": 64,
    "rope_dtype": "compute",
    "softcap_dtype": "float32",
}

PLAIN = EVERYTHING | {
    "kv_heads": 4,
    "rope_base": 10_000.0,
    "window_pattern": "L",
    "value_embeddings": False,
    "residual_scalars": False,
    "smear": False,
    "backout": False,
    "qk_scale": 1.0,
    "initialization": "classic",
    "vocab_multiple": 1,
    "rope_dtype": "bfloat16",
    "softcap_dtype": "compute",
}
