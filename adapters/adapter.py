"""Adapter: a trained LoRA in PEFT's format, in memory, as one buffer of bytes.

The bytes are those of `adapter_model.safetensors`; with `adapter_config.json` beside it, plain PEFT
and vLLM load it. It is independent of how it was trained and where it will be used.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Adapter:
    """A LoRA adapter.

    Attributes:
        name: Unique name, never reused for another adapter.
        base_model: Hub id or folder of the model it was trained on.
        rank: LoRA rank r.
        scale_numerator: LoRA alpha: the update is B A times alpha / r.
        targets: Names of the adapted projections, such as "q_proj".
        weights: A safetensors file with PEFT's keys, float32.
        losses: Mean loss in nats per token of each step, before that step.
    """

    name: str
    base_model: str
    rank: int
    scale_numerator: float
    targets: tuple[str, ...]
    weights: bytes
    losses: tuple[float, ...]

    def save(self, folder: Path) -> None:
        """Write PEFT's two files into a folder, which is created if needed."""
        folder.mkdir(parents=True, exist_ok=True)
        config = {
            "peft_type": "LORA",
            "task_type": "CAUSAL_LM",
            "base_model_name_or_path": self.base_model,
            "r": self.rank,
            "lora_alpha": self.scale_numerator,
            "lora_dropout": 0.0,
            "target_modules": list(self.targets),
            "bias": "none",
            "inference_mode": True,
        }
        (folder / "adapter_config.json").write_text(json.dumps(config, indent=2))
        (folder / "adapter_model.safetensors").write_bytes(self.weights)
