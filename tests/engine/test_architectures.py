"""vLLM gives adapters of each tested architecture the log-probabilities that PEFT gives them;
`test_adapter_exactness` asks the same of Llama.
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from adapters.model_defaults import for_model
from adapters.training import TrainingRequest
from tests.adapters.trainers import trainer_of
from tests.tiny_models import ARCHITECTURES, save_tiny

# More tokens than the models' sliding windows have.
_TEXT = (
    "import typing\n\nfrom starlette.types import ASGIApp, Receive, Scope, Send\n\n\n"
    "class Middleware:\n    def __init__(self, app: ASGIApp) -> None:\n        self.app = app\n"
)
_TOLERANCE = 1e-3
_ARCHITECTURES = [each for each in ARCHITECTURES if each != "llama"]


@dataclass(frozen=True)
class Scores:
    """Log-probabilities of the text, without and with an adapter."""

    base: torch.Tensor
    adapted: torch.Tensor


@pytest.fixture(scope="module")
def jobs(nano: str, tokenizer: Any, tmp_path_factory: Any) -> dict[str, dict[str, Any]]:
    """For each architecture a model, and an adapter that Mayfly has trained on the text."""
    tokens = tokenizer(_TEXT, add_special_tokens=False)["input_ids"]
    jobs = {}
    for architecture in _ARCHITECTURES:
        root: Path = tmp_path_factory.mktemp(architecture)
        folder = save_tiny(architecture, root / "model", nano)
        targets = for_model(folder).targets
        trainer = trainer_of(folder, targets=targets, learning_rate=1e-2)
        adapter = trainer.train(TrainingRequest([tokens] * 8)).adapter
        assert adapter is not None
        adapter.save(root / "adapter")
        jobs[architecture] = {
            "folder": folder,
            "adapter": str(root / "adapter"),
            "rank": adapter.rank,
            "targets": targets,
            "tokens": tokens,
        }
    return jobs


@pytest.fixture(scope="module")
def by_vllm(jobs: dict[str, dict[str, Any]], tmp_path_factory: Any) -> dict[str, Any]:
    """vLLM's scores, or its problem, by the folder of the model."""
    root: Path = tmp_path_factory.mktemp("scores")
    (root / "jobs.json").write_text(json.dumps(list(jobs.values())))
    command = [sys.executable, "-m", "tests.engine.score_adapters"]
    subprocess.run([*command, root / "jobs.json", root / "scores.json"], check=True)
    scores: dict[str, Any] = json.loads((root / "scores.json").read_text())
    return scores


@pytest.mark.parametrize("architecture", _ARCHITECTURES)
def test_vllms_logprobs_are_those_of_peft(
    architecture: str, jobs: dict[str, dict[str, Any]], by_vllm: dict[str, Any]
) -> None:
    job = jobs[architecture]
    found, expected = by_vllm[job["folder"]], _by_peft(job)

    assert "problem" not in found, found
    torch.testing.assert_close(torch.tensor(found["base"]), expected.base, atol=_TOLERANCE, rtol=0)
    torch.testing.assert_close(
        torch.tensor(found["adapted"]), expected.adapted, atol=_TOLERANCE, rtol=0
    )
    assert (expected.adapted - expected.base).abs().max() > 100 * _TOLERANCE


def _by_peft(job: dict[str, Any]) -> Scores:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(job["folder"], dtype=torch.float32)
    base = _log_probabilities(model, job["tokens"])
    adapted = PeftModel.from_pretrained(model, job["adapter"])
    return Scores(base, _log_probabilities(adapted, job["tokens"]))


@torch.no_grad()
def _log_probabilities(model: Any, tokens: list[int]) -> torch.Tensor:
    found: torch.Tensor = model(torch.tensor([tokens])).logits[0, :-1].log_softmax(-1)
    return found.gather(1, torch.tensor(tokens[1:])[:, None])[:, 0]
