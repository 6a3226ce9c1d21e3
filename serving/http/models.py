"""The models that clients may name: vLLM's, and for each corpus with an adapter one that answers
with it, for clients that can send neither a header nor `adaptation`.

`nano:handbook` is the model `nano` with the corpus `handbook` and the budget `instant`, unless the
request gives another budget. A corpus that the client does not see does not exist for it. A name
that begins with no served model is left to vLLM, which refuses it.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from selection.access import Principal
from selection.corpus.trained.manifest import LearntCorpus
from serving.api_keys.key import Key
from serving.budget import Terms
from serving.engine.engine import Engine
from serving.errors import ModelError, RequestError
from serving.http.gateway_stages import CorporaStage
from serving.http.routing import Route
from serving.observability.logs import log_failure

_SEPARATOR = ":"
# Seconds that the list of models waits for the selector.
_LEARNT_SECONDS = 5.0
# Largest number of names in the error of an unknown model.
_MAX_NAMES = 10

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class CorpusModel:
    """A model that a request names together with a corpus.

    Attributes:
        name: the name in the request.
        served: name of the model itself.
        corpus: name or id of the corpus.
    """

    name: str
    served: str
    corpus: str


class Models:
    """The models of one server.

    Args:
        engine: serves them.
        selector: knows the corpora.
        terms: the server's terms of adaptation.

    Attributes:
        routes: the routes of OpenAI's models API.
    """

    def __init__(self, engine: Engine, selector: CorporaStage, terms: Terms) -> None:
        self._engine, self._selector, self._terms = engine, selector, terms
        config = engine.config
        # The longest first, since a name may itself begin with another one.
        self._served = sorted((config.served_name, *config.more_names), key=len, reverse=True)
        self.routes = [
            Route("GET", "/v1/models", self._list),
            Route("GET", "/v1/models/{name:path}", self._retrieve),
        ]

    async def take_corpus(self, body: dict[str, Any], principal: Principal) -> CorpusModel | None:
        """Replace the name of a model and a corpus in the body of a request by that of the model;
        None if it names no corpus.

        Raises:
            ModelError: the principal does not see the corpus.
        """
        name = body.get("model")
        if not isinstance(name, str) or not (named := self._split(name)):
            return None
        for model in named:
            if await self._selector.sees(model.corpus, principal):
                body["model"] = model.served
                return model
        raise ModelError(
            f"unknown model {name!r:.80}: there is no corpus {named[0].corpus!r:.80}; "
            f"{await self._known(principal)}"
        )

    def _split(self, name: str) -> list[CorpusModel]:
        """The models and corpora that a name may mean; none if it is that of a model."""
        if name in self._served:
            return []
        prefixes = {served: served + _SEPARATOR for served in self._served}
        return [
            CorpusModel(name, served, name.removeprefix(prefix))
            for served, prefix in prefixes.items()
            if name.startswith(prefix)
        ]

    async def _list(self, request: Request) -> Response:
        return JSONResponse({"object": "list", "data": await self._cards(request)})

    async def _retrieve(self, request: Request) -> Response:
        name = request.path_params["name"]
        cards = {card["id"]: card for card in await self._cards(request)}
        if name in cards:
            return JSONResponse(cards[name])
        principal: Principal = request.state.principal
        for model in self._split(name):
            if not await self._selector.sees(model.corpus, principal):
                continue
            # It may be named by its id, or after another of the served names.
            for corpus in await self._learnt(principal):
                listed = cards.get(next(iter(cards)) + _SEPARATOR + corpus.name)
                if listed and model.corpus in (corpus.id, corpus.name):
                    return JSONResponse({**listed, "id": name, "parent": model.served})
            raise ModelError(
                f"unknown model {name!r}: the corpus {model.corpus!r} has no adapter that can "
                f"be used now; `mayfly corpus train {model.corpus}` trains one"
            )
        raise ModelError(f"unknown model {name!r:.80}: {await self._known(principal)}")

    async def _known(self, principal: Principal) -> str:
        """For an error, which models there are."""
        first = self._engine.config.served_name
        corpora = [first + _SEPARATOR + each.name for each in await self._learnt(principal)]
        names = [first, *self._engine.config.more_names, *corpora]
        more = ", and more" if len(names) > _MAX_NAMES else ""
        return f"this server has {', '.join(names[:_MAX_NAMES])}{more} (GET /v1/models)"

    async def _cards(self, request: Request) -> list[dict[str, Any]]:
        """vLLM's models, and the first of them with each learnt corpus, with the adaptation terms
        of the request's key.
        """
        key: Key | None = request.state.key
        terms = self._terms.as_dict(None if key is None else key.limits)
        cards = [{**card, "adaptation": terms} for card in await self._engine.models()]
        learnt = await self._learnt(request.state.principal)
        first = cards[0]
        return cards + [
            {
                **first,
                "id": first["id"] + _SEPARATOR + corpus.name,
                "created": int(corpus.created),
                "parent": first["id"],
                "adaptation": {**terms, "corpus": True},
            }
            for corpus in learnt
        ]

    async def _learnt(self, principal: Principal) -> tuple[LearntCorpus, ...]:
        """The corpora with an adapter; none where the selector does not answer, since the models
        themselves can be used without it.
        """
        try:
            async with asyncio.timeout(_LEARNT_SECONDS):
                return await self._selector.learnt_corpora(principal)
        except Exception as problem:
            what = "the list of models lacks those of corpora"
            log_failure(log, what, problem, logging.WARNING)
            return ()


def name_corpus(body: dict[str, Any], model: CorpusModel) -> None:
    """Put the corpus that a model's name contains into the `adaptation` of a request.

    Raises:
        RequestError: the request names another corpus there.
    """
    options = body.get("adaptation")
    # An `adaptation` of another type is refused by its parser.
    if options is not None and not isinstance(options, dict):
        return
    options = options or {}
    if options.get("corpus", model.corpus) != model.corpus:
        raise RequestError(
            f"the model {model.name!r} and `adaptation.corpus` name different corpora: name it in "
            "one of them"
        )
    body["adaptation"] = {**options, "corpus": model.corpus}
