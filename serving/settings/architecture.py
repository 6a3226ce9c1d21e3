"""Whether vLLM can serve adapters of a model's architecture, by the model's config.json alone.

`NO_LORA` holds for the version of vLLM that `serving.versions` names; a test compares it with
vLLM's own classes.
"""

from __future__ import annotations

import json
import logging
from pathlib import Path

from serving.errors import ModelFilesError
from serving.settings.model_files import local_folder

log = logging.getLogger(__name__)

# The architectures that vLLM generates text with, but has no LoRA for.
NO_LORA = frozenset(
    {
        "BailingMoeV2_5ForCausalLM",
        "BailingMoeV3ForCausalLM",
        "BloomForCausalLM",
        "Cohere2MoeForCausalLM",
        "DbrxForCausalLM",
        "FalconForCausalLM",
        "FalconMambaForCausalLM",
        "GPT2LMHeadModel",
        "GPTJForCausalLM",
        "Gemma3nForCausalLM",
        "Glm5NextForCausalLM",
        "HCXVisionV2ForCausalLM",
        "HrmTextForCausalLM",
        "IQuestLoopCoderForCausalLM",
        "KimiLinearForCausalLM",
        "Mamba2ForCausalLM",
        "MambaForCausalLM",
        "MiMoV2FlashForCausalLM",
        "MiMoV2ForCausalLM",
        "MiniMaxM3SparseForCausalLM",
        "OrionForCausalLM",
        "StableLmForCausalLM",
        "Step1ForCausalLM",
        "Step3TextForCausalLM",
        "Step3p5ForCausalLM",
        "Zamba2ForCausalLM",
    }
)


def check_architecture(model: str) -> None:
    """Check that vLLM has LoRA for a model, whose files `check_model` has checked.

    Args:
        model: hub id or folder.

    Raises:
        ModelFilesError: vLLM has no LoRA for it.
    """
    if found := sorted(NO_LORA & set(_architectures(model))):
        raise ModelFilesError(
            f"cannot serve the model {model!r}: vLLM has no LoRA for {found[0]}; adapters of it "
            "can be trained (`mayfly adapt`), but a server needs another model"
        )


def _architectures(model: str) -> list[str]:
    """The architectures that config.json names; none if it cannot be read."""
    folder = local_folder(model)
    try:
        file = folder / "config.json" if folder is not None else _download(model)
        named = json.loads(file.read_bytes()).get("architectures") or []
        return [str(each) for each in named]
    # The hub's library raises exceptions of any kind. Whatever is wrong, loading the model's
    # configuration is the next step, and reports it.
    except Exception as problem:
        log.debug("cannot read the architecture of %s: %s", model, problem)
        return []


def _download(model: str) -> Path:
    from huggingface_hub import hf_hub_download

    return Path(hf_hub_download(model, "config.json"))
