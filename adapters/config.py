"""TrainerConfig: how adapters are trained. A value that can be named and compared without loading
torch.
"""

from __future__ import annotations

from dataclasses import dataclass

LLAMA_TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
SMALL_MODEL = 50_000_000  # parameters
PRECISIONS = ("auto", "float32", "bfloat16")


@dataclass(frozen=True)
class TrainerConfig:
    """How adapters are trained.

    Attributes:
        model: hub id or folder of the base model; safetensors only.
        rank: of the LoRA.
        scale: what B A is multiplied by, LoRA's alpha over its rank; None takes 16 for models under
            50 M parameters (chosen on the bundled one, benchmarks/README.md) and 1 above. The
            larger, the faster B learns beside A.
        learning_rate: of Adam; None takes 6e-4 for those (at a scale of 16) and the paper's 5e-4
            above.
        targets: names of the projections that are adapted.
        device: "cpu", "cuda", or "auto".
        precision: of the base model: "float32", "bfloat16", or "auto": bfloat16 where the processor
            has units for it, which are a GPU and CPUs with AMX. What is learnt, and its moments,
            are always float32.
        slots: how many adapters are trained at once; others wait.
        memory_bytes: that a step may keep for its backward; None takes half of what is free at the
            start. A sequence that keeps more is computed layer by layer, twice; one that needs more
            even so ends "out-of-memory" at once.
        batch_tokens: of a step, padding included. None takes 2,048 on a CPU, where more is no
            faster; 16,384 on a GPU.
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
