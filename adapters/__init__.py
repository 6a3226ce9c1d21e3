"""adapters: LoRA adapters that live for one request, trained on a resident base model.

Usable alone: no Ray, no vLLM. It knows token sequences, never where they came from.
"""

from adapters.adapter import Adapter
from adapters.trainer import Trainer, TrainerConfig
from adapters.training import Progress, Training, Watch

__all__ = ["Adapter", "Progress", "Trainer", "TrainerConfig", "Training", "Watch"]
