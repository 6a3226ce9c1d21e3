"""What is changed in Ray Serve's replicas, and what a call to one raises that has ended."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from ray.exceptions import ActorDiedError, ActorUnavailableError, RayTaskError
from ray.serve import context
from ray.serve._private import replica

from selection.errors import CorpusError
from serving.errors import StageFailedError
from serving.ray_stages import RemoteTrainer, cancel_copied_calls

_REQUEST = SimpleNamespace(internal_request_id="the request")


class Call:
    """A call to another replica that ends as soon as it is cancelled."""

    def __init__(self, name: str) -> None:
        self.name, self.is_cancelled = name, False

    def cancel(self) -> None:
        self.is_cancelled = True
        context._remove_in_flight_request(_REQUEST.internal_request_id, self.name)


def _calls() -> list[Any]:
    calls = [Call("first"), Call("second")]
    for call in calls:
        context._add_in_flight_request(_REQUEST.internal_request_id, call.name, call)
    return calls


def test_calls_that_end_while_ray_cancels_them_are_all_cancelled(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(replica, "_get_in_flight_requests", context._get_in_flight_requests)
    cancel: Any = replica.Replica._on_request_cancelled
    _calls()
    # Without the change Ray fails.
    with pytest.raises(RuntimeError, match="changed size during iteration"):
        cancel(None, _REQUEST, None)
    for name in ("first", "second"):
        context._remove_in_flight_request(_REQUEST.internal_request_id, name)

    cancel_copied_calls()
    calls = _calls()
    cancel(None, _REQUEST, None)

    assert all(call.is_cancelled for call in calls)
    assert not context._get_in_flight_requests(_REQUEST.internal_request_id)


class Failing:
    """A handle of a deployment whose calls fail."""

    deployment_name = "trainer"

    def __init__(self, problem: Exception) -> None:
        self._problem = problem
        self.ready = SimpleNamespace(remote=self._fail)

    async def _fail(self) -> None:
        raise self._problem


@pytest.mark.parametrize(
    ("problem", "kind", "message"),
    [
        (ActorDiedError(), StageFailedError, "the trainer has ended; a new one is started"),
        (ActorUnavailableError("gone", None), StageFailedError, "the trainer has ended"),
        (RayTaskError("f", "a stack", CorpusError("it is damaged")), CorpusError, "it is damaged"),
    ],
)
async def test_a_call_raises_errors_of_our_own(
    problem: Exception, kind: type[Exception], message: str
) -> None:
    trainer = RemoteTrainer(Failing(problem))

    with pytest.raises(kind, match=message) as caught:
        await trainer.ready()

    assert caught.value.__suppress_context__
