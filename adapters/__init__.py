"""adapters: LoRA adapters that live for one request, trained on a resident base model.

Usable alone, without Ray and vLLM. It knows token sequences, never where they came from. Names are
imported on first use: code that needs only a value type or an exception does not wait for torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from adapters.adapter import Adapter
    from adapters.config import TrainerConfig
    from adapters.errors import AdapterError
    from adapters.trainer import Trainer
    from adapters.training import (
        Probe,
        StartComparison,
        TrainingProgress,
        TrainingRequest,
        TrainingResult,
        TrainingState,
        TrainingStop,
    )

__all__ = [
    "Adapter",
    "AdapterError",
    "Probe",
    "StartComparison",
    "Trainer",
    "TrainerConfig",
    "TrainingProgress",
    "TrainingRequest",
    "TrainingResult",
    "TrainingState",
    "TrainingStop",
]

_MODULES = {
    "Adapter": "adapter",
    "AdapterError": "errors",
    "TrainingProgress": "training",
    "Trainer": "trainer",
    "TrainerConfig": "config",
    "TrainingRequest": "training",
    "TrainingResult": "training",
    "TrainingState": "training",
    "TrainingStop": "training",
    "Probe": "training",
    "StartComparison": "training",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
