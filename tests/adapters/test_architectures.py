"""Each tested architecture is trained as PEFT trains it, in all of its projections."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from adapters.model_defaults import for_model
from adapters.trainer import Trainer
from adapters.training import TrainingRequest
from tests.adapters.peft_reference import (
    Base,
    PeftReference,
    assert_close,
    first_weights,
    load,
)
from tests.adapters.trainers import trainer_of, weights_of
from tests.tiny_models import ARCHITECTURES, save_tiny

# Rows that are longer than the sliding windows, and one that is shorter.
_ROWS = [[(11 * m + 7 * s * s) % 499 for s in range(48 - 13 * m)] for m in range(4)]
_RATE = 5e-3


@pytest.fixture(scope="module", params=ARCHITECTURES)
def base(request: pytest.FixtureRequest, tmp_path_factory: Any, nano: str) -> Base:
    folder = tmp_path_factory.mktemp("models") / request.param
    return Base(request.param, save_tiny(request.param, folder, nano))


@pytest.fixture(scope="module")
def trainer(base: Base) -> Trainer:
    return trainer_of(base.folder, targets=for_model(base.folder).targets, learning_rate=_RATE)


def test_the_documents_list_the_tested_architectures() -> None:
    page = (Path(__file__).parents[2] / "docs" / "model.md").read_text()

    assert tuple(re.findall(r"^\| [^|]+ \| `(\w+)` \|", page, re.MULTILINE)) == ARCHITECTURES


def test_the_trainers_model_has_transformers_logits(base: Base, trainer: Trainer) -> None:
    ids_1S = torch.tensor(_ROWS[:1])

    with torch.no_grad():
        found = trainer.base.model(ids_1S, use_cache=False).logits
        expected = load(base.folder)(ids_1S, use_cache=False).logits

    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_an_adapter_equals_pefts(base: Base, trainer: Trainer) -> None:
    targets = trainer.config.targets
    plain = PeftReference(base, first_weights(base, 21, targets), _RATE, targets)
    for row in _ROWS:
        plain.step(*plain.gradients(row))

    training = trainer.train(TrainingRequest(_ROWS, seed=21))

    assert training.losses == pytest.approx(plain.losses, rel=1e-4)
    # Adam makes a whole step of a gradient that is next to nothing, which rounding may change.
    assert_close(weights_of(training), plain.weights, relative=1e-3)
    assert all(tensor.any() for tensor in weights_of(training).values())
