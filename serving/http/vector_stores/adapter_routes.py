"""Routes to the adapter of a vector store, which requests start from: train it, watch and cancel
the training, delete the adapter.

OpenAI's API has nothing of the kind; the objects follow its other operations. A vector store's
owner may train it.
"""

from __future__ import annotations

from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from selection.access import Principal
from selection.corpus.trained.manifest import AdapterStatus
from selection.errors import MissingError
from serving.corpus_training.operation import TrainingOperation
from serving.corpus_training.trainings import CorpusTrainings
from serving.corpus_training.values import TrainingOptions
from serving.errors import RequestError
from serving.http.browsers import has_body
from serving.http.routing import Route
from serving.http.vector_stores.params import read_fields, whole_number
from serving.http.vector_stores.routes import POLL_AFTER, Endpoint, handled
from serving.http.vector_stores.schemas import deleted_object

_MAX_PASSES, _MAX_PARTS, _MAX_SECONDS = 20, 10_000, 30 * 86_400


class AdapterRoutes:
    """Routes to the adapters of vector stores.

    Args:
        trainings: the trainings of this server.

    Attributes:
        routes: the routes.
    """

    def __init__(self, trainings: CorpusTrainings) -> None:
        self._trainings = trainings
        adapter = "/v1/vector_stores/{store}/adapter"
        table: list[tuple[str, str, Endpoint]] = [
            ("POST", adapter, self._train),
            ("GET", adapter, self._retrieve),
            ("DELETE", adapter, self._delete),
            ("POST", f"{adapter}/cancel", self._cancel),
        ]
        self.routes = [Route(method, path, handled(endpoint)) for method, path, endpoint in table]

    async def _train(self, request: Request, principal: Principal) -> Response:
        store, options = request.path_params["store"], await _options(request)
        operation = await self._trainings.train(store, options, principal)
        return await self._adapter(store, operation, principal)

    async def _retrieve(self, request: Request, principal: Principal) -> Response:
        store = request.path_params["store"]
        operation = await self._trainings.operation(store, principal)
        return await self._adapter(store, operation, principal)

    async def _cancel(self, request: Request, principal: Principal) -> Response:
        store = request.path_params["store"]
        operation = await self._trainings.cancel(store, principal)
        return await self._adapter(store, operation, principal)

    async def _delete(self, request: Request, principal: Principal) -> Response:
        identity = await self._trainings.remove(request.path_params["store"], principal)
        return JSONResponse(deleted_object("vector_store.adapter.deleted", identity))

    async def _adapter(
        self, store: str, operation: TrainingOperation | None, principal: Principal
    ) -> Response:
        status = await self._trainings.status(store, principal)
        if operation is None and status.info is None:
            raise MissingError(
                f"vector store {store!r} has no adapter: POST to this path to train one"
            )
        is_pending = operation is not None and operation.is_pending
        return JSONResponse(
            adapter_object(operation, status), headers=POLL_AFTER if is_pending else None
        )


def adapter_object(operation: TrainingOperation | None, status: AdapterStatus) -> dict[str, Any]:
    """The adapter of a vector store, with its last training by a server."""
    info = status.info
    adapter = info and {
        "usable": status.reason is None,
        "reason": status.reason,
        "documents": status.documents,
        "sequences": status.learnt,
        "not_learnt": status.not_learnt,
        "parts": len(info.parts),
        "learning_rate": info.learning_rate,
        "passes": info.passes,
    }
    shared = {"object": "vector_store.adapter", "adapter": adapter}
    if operation is None:
        assert info is not None, "there is an adapter or an operation"
        # The command has trained it.
        return {**shared, "vector_store_id": info.corpus, "status": "completed", "training": None}
    error = operation.error and {"code": "training_failed", "message": operation.error}
    return {
        **shared,
        "vector_store_id": operation.store,
        "status": operation.status.value,
        "training": {
            "created_at": int(operation.created),
            "phase": operation.phase or None,
            "sequences": {"done": operation.done, "total": operation.total},
            "seconds": round(operation.seconds, 3),
            "last_error": error,
        },
    }


async def _options(request: Request) -> TrainingOptions:
    """How the adapter is to be trained.

    Raises:
        RequestError: the body is not a JSON object of valid options.
    """
    if not has_body(request.headers):
        return TrainingOptions()
    body = await read_fields(request, "seconds", "passes", "parts", "fresh")
    seconds, fresh = body.get("seconds"), body.get("fresh", False)
    if seconds is not None and (
        type(seconds) not in (int, float) or not 0 < seconds <= _MAX_SECONDS
    ):
        raise RequestError(f"`seconds` must be a number above 0, up to {_MAX_SECONDS}")
    if type(fresh) is not bool:
        raise RequestError("`fresh` must be true or false")
    limits = {"passes": _MAX_PASSES, "parts": _MAX_PARTS}
    counts = {
        name: whole_number(body[name], name, 1, limit)
        for name, limit in limits.items()
        if name in body
    }
    return TrainingOptions(seconds, fresh=fresh, **counts)
