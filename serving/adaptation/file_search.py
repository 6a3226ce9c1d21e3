"""`file_search`, a hosted tool of OpenAI's Responses API, which names the corpus to adapt from.

The tool is taken out of the request, since the model does not call it, and `tool_choice` adjusted.
"""

from __future__ import annotations

from typing import Any

from serving.errors import UnsupportedError

_NAME = "file_search"


def take_file_search(body: dict[str, Any]) -> None:
    """Move a `file_search` from the tools to `adaptation`: its store as `corpus`, its `filters`.

    Raises:
        UnsupportedError: more than one store, options that have no effect, or another corpus or
            filter in `adaptation`.
    """
    _limit_choice(body)
    tools = body.get("tools")
    searches = [tool for tool in tools if _is_search(tool)] if isinstance(tools, list) else []
    if not searches:
        return
    options = {"corpus": _store(searches)}
    if searches[0].get("filters") is not None:
        options["filters"] = searches[0]["filters"]
    adaptation = body.get("adaptation")
    # An `adaptation` of another type is refused by its parser.
    if adaptation is None or isinstance(adaptation, dict):
        adaptation = adaptation or {}
        for name, value in options.items():
            if adaptation.get(name, value) != value:
                raise UnsupportedError(
                    f"`adaptation.{name}` and the file_search in `tools` disagree: "
                    "give it in one of them",
                    "tools",
                )
        body["adaptation"] = {**adaptation, **options}
    body["tools"] = [tool for tool in tools or () if not _is_search(tool)]
    _adjust_choice(body)


def _store(searches: list[dict[str, Any]]) -> str:
    ids = [each for tool in searches for each in _ids(tool)]
    if len(set(ids)) != 1:
        raise UnsupportedError(
            "a request adapts from one corpus: "
            f"`vector_store_ids` of file_search must have one id, not {len(ids)}",
            "tools",
        )
    if len(searches) > 1:
        raise UnsupportedError(
            "`tools` has several file_search: a request adapts from one corpus, once", "tools"
        )
    if searches[0].get("max_num_results") is not None:
        raise UnsupportedError(
            "`max_num_results` of file_search is not supported: "
            "the Compute-Budget limits how much is trained on",
            "tools",
        )
    ranking = searches[0].get("ranking_options")
    if ranking is not None and (
        not isinstance(ranking, dict)
        or ranking.get("score_threshold")
        or ranking.get("hybrid_search")
    ):
        raise UnsupportedError(
            "`ranking_options` of file_search is not supported: "
            "`adaptation.strategy` chooses what is trained on",
            "tools",
        )
    return ids[0]


def _ids(tool: dict[str, Any]) -> list[str]:
    ids = tool.get("vector_store_ids")
    if not isinstance(ids, list) or not all(isinstance(each, str) for each in ids):
        raise UnsupportedError(
            "`vector_store_ids` of file_search must be a list of one id", "tools"
        )
    return ids


def _limit_choice(body: dict[str, Any]) -> None:
    """Refuse a choice among tools, which has no effect, unless it is the search alone."""
    choice = body.get("tool_choice")
    if isinstance(choice, dict) and choice.get("type") == "allowed_tools":
        allowed = choice.get("tools")
        if not isinstance(allowed, list) or not allowed or not all(map(_is_search, allowed)):
            raise UnsupportedError(
                "`tool_choice`: allowed_tools has no effect here: send only those `tools`",
                "tool_choice",
            )
        body["tool_choice"] = {"type": _NAME}


def _adjust_choice(body: dict[str, Any]) -> None:
    """Let `tool_choice` concern the tools that are left."""
    choice = body.get("tool_choice")
    if not body["tools"]:
        del body["tools"]
        if _is_search(choice) or choice in ("auto", "none", "required"):
            body.pop("tool_choice", None)
    elif _is_search(choice):
        body["tool_choice"] = "none"
    # The search counts as the required call.
    elif choice == "required":
        body["tool_choice"] = "auto"


def _is_search(value: Any) -> bool:
    return isinstance(value, dict) and value.get("type") == _NAME
