"""A generator is as it was before the token that vLLM discards."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from serving.engine.plugins.cpu_seeds import rewind_by_state


class Runner:
    """Samples and rewinds as vLLM's runner does."""

    def __init__(self, seeds: list[int], discarded: list[bool]) -> None:
        generators = {i: torch.Generator().manual_seed(seed) for i, seed in enumerate(seeds)}
        self.input_batch = SimpleNamespace(generators=generators)
        self.discard_request_mask = SimpleNamespace(np=np.array(discarded))

    def _sample(self) -> dict[int, float]:
        generators = self.input_batch.generators
        return {i: float(torch.rand(1, generator=each)) for i, each in generators.items()}

    def _bookkeeping_sync(self) -> None:
        for i in np.nonzero(self.discard_request_mask.np)[0]:
            if (generator := self.input_batch.generators.get(int(i))) is not None:
                generator.set_offset(generator.get_offset() - 4)


def test_only_the_generators_of_incomplete_prompts_are_rewound() -> None:
    kind: Any = type("Kind", (Runner,), {})
    rewind_by_state(kind)
    rewind_by_state(kind)
    runner = kind([1, 2], [True, False])

    first = runner._sample()
    runner._bookkeeping_sync()
    runner.discard_request_mask.np[:] = False
    second = runner._sample()
    runner._bookkeeping_sync()

    assert second[0] == first[0]
    assert second[1] != first[1]
    assert set(runner.input_batch.generators) == {0, 1}
