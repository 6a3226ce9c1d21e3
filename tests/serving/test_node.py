"""The node: an engine that is well now and then is waited for, one that never is again is given up."""

from __future__ import annotations

import threading

import pytest

from serving import node as node_module
from serving.errors import LostError
from serving.node import Node

SECONDS = 0.01


@pytest.fixture
def node(monkeypatch: pytest.MonkeyPatch) -> Node:
    monkeypatch.setattr(node_module, "_SECONDS", SECONDS)
    return Node()


def test_an_engine_that_is_well_at_one_look_in_three_is_waited_for(node: Node) -> None:
    looks = 0

    def healthy() -> bool:
        nonlocal looks
        looks += 1
        return looks % 3 == 0 and looks <= 90

    with pytest.raises(LostError, match="no engine"):
        node.watch(healthy, patience=50 * SECONDS)
    assert looks > 90


def test_who_does_not_say_whether_it_is_well_is_not_waited_for(node: Node) -> None:
    never = threading.Event()

    with pytest.raises(LostError, match="no engine"):
        node.watch(never.wait, patience=5 * SECONDS)
    never.set()


def test_an_engine_that_does_not_come_back_is_given_up(node: Node) -> None:
    with pytest.raises(LostError, match="no engine"):
        node.watch(lambda: False, patience=5 * SECONDS)

    assert node.lost == "engine"


def test_the_end_of_the_raylet_is_seen_though_who_is_asked_does_not_answer(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    never = threading.Event()
    there = iter([None] * 5)
    monkeypatch.setattr(Node, "lost", property(lambda _: next(there, "raylet")))

    with pytest.raises(LostError, match="raylet has ended"):
        node.watch(never.wait, patience=60.0)
    never.set()


def test_what_needs_ray_is_waited_for_while_ray_is_there(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    done, never = threading.Event(), threading.Event()
    node.while_there(done.set)
    assert done.is_set()

    monkeypatch.setattr(Node, "lost", "raylet")
    node.while_there(never.wait)
    never.set()
