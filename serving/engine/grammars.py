"""Check the grammar of a request before its adapter is trained.

vLLM parses a JSON schema, a regular expression, a choice, a grammar or a structural tag when it
accepts the request. But it compiles it in the engine's process, after the adapter has been trained,
and if that fails, the request fails without a reason. So the grammar is first compiled here in the
same way, in a thread and within limits. A grammar that compiles may still have a dead end, a point
where no token is allowed, and the engine fails there. `dead_end` finds such rules.

This module does not import vLLM: `serving.engine.plugins.generate` passes in vLLM's objects.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator
from typing import Any

from serving.errors import BusyError, GrammarError

# Longest time to compile a grammar, including the time it waits for others.
SECONDS = 10.0
MAX_CHARACTERS = 100_000
_TOKEN = re.compile(
    r'"(?:[^"\\]|\\.)*"|\[(?:[^\]\\]|\\.)*\]|\(=|::=|[()|]|\{[^}]*\}|[*+?]|[A-Za-z_][\w.-]*|[^\s]'
)
_NAME = re.compile(r"[A-Za-z_][\w.-]*")
_TAGS = "TagDispatch("

# Elements of a sequence: the name of a rule, "" for an element that may be empty, or any other
# string for an element that has text.
Sequence = list[str]
# The alternatives of each rule.
Rules = dict[str, list[Sequence]]


class Grammars:
    """Compiles grammars in the same way as vLLM's engine.

    Args:
        manager: vLLM's `StructuredOutputManager`.
    """

    def __init__(self, manager: Any) -> None:
        self._manager = manager
        self._compiler_lock = asyncio.Lock()

    async def check(self, request: Any) -> None:
        """Compile the grammar of a request, if it has one.

        Args:
            request: vLLM's `Request`.

        Raises:
            GrammarError: the grammar cannot be compiled within the limits, or has a dead end.
            BusyError: the grammars of other requests took the whole time.
        """
        structured = request.structured_output_request
        if structured is None:
            return
        _, text = structured.structured_output_key
        if len(text) > MAX_CHARACTERS:
            raise GrammarError(
                f"the grammar is too long: {len(text):,} characters; at most {MAX_CHARACTERS:,}"
            )
        try:
            async with asyncio.timeout(SECONDS):
                # The first call creates the compiler, and only one call may do so.
                async with self._compiler_lock:
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
                f"no answer can follow the grammar: its rule {rule!r} has no text to begin with"
            )

    def _dead_end(self, grammar: Any) -> str | None:
        mask = self._manager.backend.allocate_token_bitmask(1)
        grammar.fill_bitmask(mask, 0)
        if not mask.any():
            return "root"
        # Only xgrammar's grammars have this attribute.
        compiled = getattr(grammar, "ctx", None)
        return None if compiled is None else dead_end(str(compiled.grammar))


def dead_end(grammar: str) -> str | None:
    """The name of a rule that an answer can reach but not continue from; None if there is no such
    rule.

    Such a rule leads only to itself before there is any text, like a schema that is a reference to
    itself. Anything that this parser does not understand counts as text.

    Args:
        grammar: a grammar as xgrammar prints it.
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
            # An answer never enters an alternative that is dead from its beginning.
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
    """Whether the sequence can begin with some text."""
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
        # Free text that contains tags, each of which has a rule.
        if body.startswith(_TAGS):
            rules[name] = [
                [""],
                *(["text", each] for each in _TOKEN.findall(body) if each in bodies),
            ]
        else:
            rules[name] = list(_alternatives(body))
    return rules


def _alternatives(body: str) -> Iterator[Sequence]:
    """The alternatives of a rule's body; anything between inner parentheses counts as text."""
    depth, current = 0, list[str]()
    parts = _TOKEN.findall(body)
    for part, following in zip(parts, [*parts[1:], ""], strict=True):
        # A look-ahead belongs to another rule.
        if part == "(=":
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
