"""A vLLM plugin: an adapter of which the model would use only a part, or nothing, is refused when
it is loaded.

vLLM 0.32 looks for weights by the path of each of its modules. What lies under another path (a
model that vLLM wraps where transformers does not, say) is left out with a message at debug level,
and the base model answers in the adapter's name. vLLM loads the plugin in every process (entry
point `vllm.general_plugins`); it acts only where `STRICT_LORA` is set, which
`serving.engine.engine` does, so that other vLLMs of the same Python environment are left alone. It
leaves experts alone, which vLLM keeps under names of its own, and knows no pipelines, whose stages
have a part of the modules each.
"""

from __future__ import annotations

import os
from typing import Any

from serving.environment import STRICT_LORA

_TOLD = 3  # names in the message


def register() -> None:
    """Called by vLLM, more than once."""
    if not STRICT_LORA.items() <= os.environ.items():
        return
    from vllm.lora.model_manager import LoRAModelManager

    if not hasattr(LoRAModelManager, "refuses_unused"):
        refuse_unused(LoRAModelManager)


def refuse_unused(manager: Any) -> None:
    """Make vLLM's class refuse, with a ValueError, adapters with weights for modules that it has
    not got.
    """
    merge = manager._create_merged_loras_inplace

    def merge_and_look(self: Any, adapter: Any) -> None:
        merge(self, adapter)
        unused = sorted(
            name for name in adapter.loras.keys() - self.modules.keys() if ".experts" not in name
        )
        if unused:
            more = f" and {len(unused) - _TOLD} more" if len(unused) > _TOLD else ""
            raise ValueError(
                f"vLLM has no modules {', '.join(unused[:_TOLD])}{more}, which the adapter has weights for, "
                "and would answer without them: it cannot serve adapters of this model"
            )

    manager.refuses_unused, manager._create_merged_loras_inplace = True, merge_and_look
