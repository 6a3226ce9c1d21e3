"""A vLLM plugin that rejects an adapter whose weights vLLM would not use completely.

vLLM 0.32 finds the weights of an adapter by the path of each of its modules. Weights under another
path, as of a model that vLLM wraps and transformers does not, are ignored with a message at debug
level, and the base model answers under the adapter's name. vLLM loads the plugin in each of its
processes (entry point `vllm.general_plugins`). It acts only where `serving.engine.engine` has set
`STRICT_LORA`, so that other programs that use the same installation of vLLM are not affected.
Experts are not checked, since vLLM renames them. Pipeline parallelism, where each stage has only
some of the modules, is not supported.
"""

from __future__ import annotations

import os
from typing import Any

from serving.environment import STRICT_LORA

# Largest number of module names in the message.
_MAX_NAMES = 3


def register() -> None:
    """Make vLLM strict; vLLM may call this repeatedly."""
    if not STRICT_LORA.items() <= os.environ.items():
        return
    from vllm.lora.model_manager import LoRAModelManager

    if not hasattr(LoRAModelManager, "rejects_unused"):
        reject_unused(LoRAModelManager)


def reject_unused(manager: Any) -> None:
    """Make vLLM's class raise a ValueError for adapters with weights for modules that do not exist.

    Args:
        manager: vLLM's `LoRAModelManager`.
    """
    merge = manager._create_merged_loras_inplace

    def merge_strictly(self: Any, adapter: Any) -> None:
        merge(self, adapter)
        unused = sorted(
            name for name in adapter.loras.keys() - self.modules.keys() if ".experts" not in name
        )
        if unused:
            more = f" and {len(unused) - _MAX_NAMES} more" if len(unused) > _MAX_NAMES else ""
            names = f"{', '.join(unused[:_MAX_NAMES])}{more}"
            raise ValueError(
                f"vLLM has no modules {names}, which the adapter has weights for, and would answer "
                "without them: it cannot serve adapters of this model"
            )

    manager.rejects_unused, manager._create_merged_loras_inplace = True, merge_strictly
