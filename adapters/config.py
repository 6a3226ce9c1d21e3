"""TrainerConfig: how adapters are trained, as a plain value that does not load torch."""

from __future__ import annotations

from dataclasses import dataclass

LLAMA_TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
PRECISIONS = ("auto", "float32", "bfloat16")


@dataclass(frozen=True)
class TrainerConfig:
    """How adapters are trained.

    Attributes:
        model: Hub id or folder of the base model; safetensors only.
        rank: LoRA rank.
        scale: Factor of B A, LoRA alpha over rank. The larger it is, the faster B learns relative
            to A. None takes that of the model's size (`adapters.model_defaults`).
        learning_rate: Adam learning rate. None takes that of the model's size.
        targets: Names of the adapted projections; Llama's by default. Each must occur in the model.
            `adapters.model_defaults.for_model` takes all those of a model.
        device: "cpu", "cuda" or "auto".
        precision: Precision of the base model: "float32", "bfloat16" or "auto", which takes
            bfloat16 on a GPU and on CPUs with AMX or AVX-512-BF16. Adapters and their moments are
            always float32.
        slots: Number of adapters that train at once; more requests wait.
        memory_bytes: Activation bytes that a step may save for backward. None takes half of the
            memory that is free at the start. A sequence that needs more is computed with gradient
            checkpointing; one that does not fit even so ends at once with "out-of-memory".
        batch_tokens: Maximum number of tokens of a step, padding included. None takes 2,048 on a
            CPU, where larger batches are no faster, and 16,384 on a GPU.
    """

    model: str
    rank: int = 16
    scale: float | None = None
    learning_rate: float | None = None
    targets: tuple[str, ...] = LLAMA_TARGETS
    device: str = "auto"
    precision: str = "auto"
    slots: int = 8
    memory_bytes: int | None = None
    batch_tokens: int | None = None
