"""What is changed in Ray Serve's replicas, and what a call to one raises that has ended."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import pytest
from grpc import StatusCode
from grpc.aio import AioRpcError, Metadata
from ray.exceptions import ActorDiedError, ActorUnavailableError, RayTaskError
from ray.serve import context
from ray.serve._private import replica

from selection.embedding import Prompt
from selection.errors import CorpusError
from selection.request import Candidate, SelectionRequest
from serving.errors import StageFailedError
from serving.ray_stages import RemoteSelector, RemoteTrainer, cancel_copied_calls

if TYPE_CHECKING:
    from ray.serve.handle import DeploymentHandle

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


def _lost_connection() -> AioRpcError:
    return AioRpcError(StatusCode.INTERNAL, Metadata(), Metadata(), "Stream removed")


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
        (_lost_connection(), StageFailedError, "the trainer has ended"),
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


LONG = Candidate(Prompt("a text"), (1, 2), None, "notes.md", 0, "a text" * 1_000_000, None, ())


class Recording:
    """A handle of the selector that records how the lookups of a start are sent."""

    def __init__(self, sent: list[tuple[str, SelectionRequest]], way: str) -> None:
        self._sent, self._way = sent, way
        self.start = SimpleNamespace(remote=self._look_up)

    def options(self, *, _by_reference: bool) -> Recording:
        return Recording(self._sent, "reference" if _by_reference else "gRPC")

    async def _look_up(self, request: SelectionRequest, seconds: float | None) -> None:
        self._sent.append((self._way, request))


async def test_a_lookup_goes_by_grpc_unless_its_request_is_long() -> None:
    sent: list[tuple[str, SelectionRequest]] = []
    selector = RemoteSelector(cast("DeploymentHandle", Recording(sent, "reference")))
    short = SelectionRequest((Prompt("a prompt"),), "nx", 0, candidates=(LONG,))

    await selector.start(short)
    await selector.start(SelectionRequest((Prompt("a prompt" * 1_000_000),), "nx", 0))

    assert [way for way, _ in sent] == ["gRPC", "reference"]
    # What a request brings plays no part in the lookup.
    assert sent[0][1].candidates == ()
