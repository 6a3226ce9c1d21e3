"""Shared fixtures: a server that plays recorded answers."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.serving.replay import CHAT, Replay, playing


@pytest.fixture(scope="session")
def running() -> Iterator[Replay]:
    with playing() as replay:
        yield replay


@pytest.fixture
def replay(running: Replay) -> Replay:
    """It plays a chat, and remembers nothing of the test before."""
    running.plays, running.refuses = CHAT, None
    running.asked.clear()
    running.left.clear()
    return running
