"""The node: an engine that is well now and then is waited for, one that never is again is given up."""

from __future__ import annotations

from itertools import count

import pytest

from serving import node as node_module
from serving.errors import LostError
from serving.node import Node

SECONDS = 0.01


class EnoughError(Exception):
    """The test has seen enough."""


@pytest.fixture
def node(monkeypatch: pytest.MonkeyPatch) -> Node:
    monkeypatch.setattr(node_module, "_SECONDS", SECONDS)
    return Node()


def test_an_engine_that_is_well_at_one_look_in_three_is_waited_for(node: Node) -> None:
    looks = count()

    def healthy() -> bool:
        look = next(looks)
        if look == 90:
            raise EnoughError
        return look % 3 == 0

    with pytest.raises(EnoughError):
        node.watch(healthy, patience=60.0)
    assert node.lost is None


def test_an_engine_that_does_not_come_back_is_given_up(node: Node) -> None:
    with pytest.raises(LostError, match="no engine"):
        node.watch(lambda: False, patience=5 * SECONDS)

    assert node.lost == "engine"
