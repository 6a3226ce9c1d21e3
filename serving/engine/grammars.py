"""Whether an answer can follow the grammar that a request asks for, told before anything is
computed for the request.

vLLM parses a JSON schema, a regular expression, a choice, a grammar or a structural tag when it
takes the request, but compiles it in the engine's process, which fails the request without a
reason: after its adapter has been trained. So it is compiled here first, as the engine will do it,
in a thread and within bounds. A grammar that compiles may still lead nowhere: to a point where no
token is allowed, and the engine fails there. `dead_end` finds those of its rules.

vLLM's parts are handed in (`serving.engine.engine`); this module imports none of it.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator
from typing import Any

from serving.errors import BusyError, GrammarError

SECONDS = 10.0  # that a grammar may take to compile, waiting for its turn included
MOST_CHARACTERS = 100_000
_PART = re.compile(
    r'"(?:[^"\\]|\\.)*"|\[(?:[^\]\\]|\\.)*\]|\(=|::=|[()|]|\{[^}]*\}|[*+?]|[A-Za-z_][\w.-]*|[^\s]'
)
_NAME = re.compile(r"[A-Za-z_][\w.-]*")
_TAGS = "TagDispatch("

# Elements in order: names of rules, "" for what may be empty, and anything else for a text.
Sequence = list[str]
Rules = dict[str, list[Sequence]]


class Grammars:
    """Compiles grammars as vLLM's engine does.

    Args:
        manager: vLLM's `StructuredOutputManager`.
    """

    def __init__(self, manager: Any) -> None:
        self._manager = manager
        self._preparing = asyncio.Lock()

    async def check(self, request: Any) -> None:
        """Compile the grammar of vLLM's request.

        Raises:
            GrammarError: it cannot be compiled within the bounds, or no answer can follow it.
            BusyError: its turn has not come within them.
        """
        structured = request.structured_output_request
        if structured is None:
            return
        _, text = structured.structured_output_key
        if len(text) > MOST_CHARACTERS:
            raise GrammarError(
                f"the grammar is too long: {len(text):,} characters, at most {MOST_CHARACTERS:,}"
            )
        try:
            async with asyncio.timeout(SECONDS):
                async with self._preparing:  # the first one makes the compiler
                    await asyncio.to_thread(self._manager.grammar_init, request)
                grammar = await asyncio.shield(asyncio.wrap_future(structured._grammar))
        except TimeoutError:
            if structured._grammar is None or structured._grammar.cancel():
                raise BusyError(
                    "the grammars of other requests are being compiled; try again later", SECONDS
                ) from None
            raise GrammarError(
                f"the grammar takes longer than {SECONDS:g} seconds to compile; make it smaller"
            ) from None
        except Exception as problem:
            raise GrammarError(f"the grammar cannot be compiled: {problem}") from problem
        if (rule := await asyncio.to_thread(self._dead_end, grammar)) is not None:
            raise GrammarError(
                f"no answer can follow the grammar: its rule {rule!r} has no text that it could begin with"
            )

    def _dead_end(self, grammar: Any) -> str | None:
        mask = self._manager.backend.allocate_token_bitmask(1)
        grammar.fill_bitmask(mask, 0)
        if not mask.any():
            return "root"
        compiled = getattr(grammar, "ctx", None)  # xgrammar's
        return None if compiled is None else dead_end(str(compiled.grammar))


def dead_end(grammar: str) -> str | None:
    """A rule that an answer may come to and cannot go on from, of a grammar as xgrammar prints it;
    None if none is.

    Such a rule leads to nothing but itself before there is any text, as a schema that is a
    reference to itself does. What is not understood counts as text.
    """
    rules = _rules(grammar)
    empty: set[str] = set()
    begins: set[str] = set()
    changed = True
    while changed:
        before = len(empty) + len(begins)
        for name, alternatives in rules.items():
            if any(all(_is_empty(each, empty) for each in one) for one in alternatives):
                empty.add(name)
            if any(_begins(one, rules, empty, begins) for one in alternatives):
                begins.add(name)
        changed = len(empty) + len(begins) > before

    def is_dead(element: str) -> bool:
        return element in rules and element not in begins and element not in empty

    if is_dead("root"):
        return "root"
    reached, pending = {"root"}, ["root"]
    while pending:
        for one in rules.get(pending.pop(), ()):
            # An alternative that is dead from its beginning is never begun.
            if not _begins(one, rules, empty, begins) and not all(
                _is_empty(each, empty) for each in one
            ):
                continue
            for element in one:
                if is_dead(element):
                    return element
                if element in rules and element not in reached:
                    reached.add(element)
                    pending.append(element)
    return None


def _is_empty(element: str, empty: set[str]) -> bool:
    return element == "" or element in empty


def _begins(sequence: Sequence, rules: Rules, empty: set[str], begins: set[str]) -> bool:
    """Whether some text can begin this sequence."""
    for element in sequence:
        if element not in rules and element != "":
            return True
        if element in begins:
            return True
        if element != "" and element not in empty:
            return False
    return False


def _rules(grammar: str) -> Rules:
    bodies: dict[str, str] = {}
    name = ""
    for line in grammar.splitlines():
        start, sign, body = line.partition(" ::= ")
        if sign and _NAME.fullmatch(start):
            name, bodies[start] = start, body
        elif name:
            bodies[name] += line
    rules = {}
    for name, body in bodies.items():
        if body.startswith(_TAGS):  # free text, and in it tags that have a rule each
            rules[name] = [
                [""],
                *(["text", each] for each in _PART.findall(body) if each in bodies),
            ]
        else:
            rules[name] = list(_alternatives(body))
    return rules


def _alternatives(body: str) -> Iterator[Sequence]:
    """The alternatives of a rule's body, each as its elements; what is between inner parentheses
    counts as text.
    """
    depth, current = 0, list[str]()
    parts = _PART.findall(body)
    for part, following in zip(parts, [*parts[1:], ""], strict=True):
        if part == "(=":  # what is looked ahead for is part of another rule
            break
        if part == "(":
            depth += 1
            if depth > 2:
                current.append(part)
        elif part == ")":
            depth -= 1
        elif part == "|" and depth <= 1:
            yield current
            current = []
        elif depth <= 2 and not (part[0] == "{" or part in ("*", "+", "?")):
            may_be_left_out = following in ("*", "?") or following.startswith("{0")
            current.append("" if part == '""' or may_be_left_out else part)
    yield current
