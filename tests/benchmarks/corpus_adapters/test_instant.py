"""How much the part `instant` measures, by model."""

from __future__ import annotations

import pytest

from benchmarks.corpus_adapters.instant import AT_ONCE, InstantSize, instant_size
from serving.config import bundled_model

SIZES = (
    instant_size(bundled_model()),
    instant_size("/models/smollm2"),
    instant_size("/models/smollm2", quick=True),
)


@pytest.mark.parametrize("size", SIZES)
def test_every_round_has_a_request_for_each_client(size: InstantSize) -> None:
    assert {*size.requests} == {*AT_ONCE}
    assert all(requests >= at_once for at_once, requests in size.requests.items())
    assert size.race_requests >= max(AT_ONCE)


def test_another_model_than_the_bundled_one_has_less_work_and_a_limit() -> None:
    bundled, real, quick = SIZES

    assert bundled.seconds is None
    assert real.seconds is not None
    assert real.seconds < 600
    assert quick.loop_requests < real.loop_requests < bundled.loop_requests
    assert real.loop_steps == bundled.loop_steps
