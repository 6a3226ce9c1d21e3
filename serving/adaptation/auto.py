"""What `auto` answers with, by the loss of the prompt's end.

The adapter of the corpus answers, without a step, if it lowers that loss; a completion has chosen
text before it then. A chat, and a prompt that the base model answers, has chosen text put into it
if that lowers the loss, by a share that tells a help from chance. Where nothing does, an adapter is
trained for the request. A lower loss of the prompt is no proof of a better answer, but the best
sign that there is beforehand (docs/budgets.md).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from adapters.model.row import Row
from serving.adaptation.request import AdaptationRequest

# The progress while it measures the losses, in words for the client.
COMPARING = "adapting: comparing what could answer"
# Largest length of a chat that is compared as the engine will see it: the trainer evaluates a row
# in one piece, in which no other request trains.
MAX_CHAT_TOKENS = 2048
# Shares by which text in the prompt must lower the loss of the prompt's end: of the base model it
# takes the place of training, which lowers it by about as much; beside the adapter of a corpus it
# is an addition, and compared in chats only (benchmarks/README.md).
MIN_FALL_OF_BASE, MIN_FALL_OF_CORPUS = 0.10, 0.02


@dataclass(frozen=True)
class Way:
    """A way to answer without a step.

    Attributes:
        corpus: whether the adapter of the corpus answers, rather than the base model.
        shown: whether chosen text is put into the prompt.
    """

    corpus: bool
    shown: bool

    @property
    def name(self) -> str:
        """Name in the report."""
        model = "corpus" if self.corpus else "base"
        return f"{model}, shown" if self.shown else model


BASE, CORPUS = Way(corpus=False, shown=False), Way(corpus=True, shown=False)


@dataclass(frozen=True)
class AutoChoice:
    """What `auto` answers with.

    Attributes:
        losses: loss of the prompt's end in each way that was measured, in nats per token; that of
            BASE is among them.
        shows_beside_corpus: whether the adapter of the corpus answers with text in any case.
    """

    losses: Mapping[Way, float]
    shows_beside_corpus: bool = False

    @property
    def best(self) -> Way:
        """The way that is chosen."""
        losses = self.losses
        alone = CORPUS if losses.get(CORPUS, losses[BASE]) < losses[BASE] else BASE
        shown = Way(alone.corpus, shown=True)
        if alone.corpus and self.shows_beside_corpus:
            return shown
        fall = MIN_FALL_OF_CORPUS if alone.corpus else MIN_FALL_OF_BASE
        if shown in losses and losses[shown] <= (1 - fall) * losses[alone]:
            return shown
        return alone

    @property
    def takes_steps(self) -> bool:
        """Whether an adapter is trained for the request: nothing that is there already helps."""
        return self.best == BASE

    @property
    def no_adapter_reason(self) -> str:
        """Why the base model answers, in words."""
        return f"with chosen text in the prompt, `auto` needs no adapter ({self._losses})"

    @property
    def fresh_reason(self) -> str:
        """Why the adapter of the corpus is not used, in words."""
        return f"it does not lower the loss of the prompt ({self._losses})"

    def as_dict(self) -> dict[str, Any]:
        """The object `auto` of the report."""
        losses = {way.name: round(loss, 6) for way, loss in self.losses.items()}
        return {"answers": "steps" if self.takes_steps else self.best.name, "losses": losses}

    @property
    def _losses(self) -> str:
        losses = "; ".join(f"{way.name} {loss:.3f}" for way, loss in self.losses.items())
        return f"nats per token: {losses}"


def decides(request: AdaptationRequest) -> bool:
    """Whether a request leaves to the server what answers: it has the budget `auto` and a corpus,
    and asks neither for sequences to show, nor for a start, nor for a way to train.
    """
    return (
        request.adapts
        and request.corpus is not None
        and request.budget.prefers_corpus
        and not request.show
        and request.start is None
        and request.reuse is None
        and request.strategy is None
        and request.plan == "sequential"
        and not request.brings_data
        and request.has_probe
    )


def rows_to_compare(
    probe: Sequence[int],
    chats: Sequence[Sequence[int]],
    text: Sequence[int] | None,
    context: int,
) -> list[Row]:
    """The end of a prompt on which the models are compared, and the same after a text, if one may
    be shown: in a chat as the engine will see it, where that is possible, and else as plain text.

    Args:
        probe: tokens of the prompt's end, at least two.
        chats: tokens of the chat, and of the chat with the text; none of a completion.
        text: tokens of the text before a completion; None without one.
        context: largest number of tokens of a prompt.
    """
    rows = [row for chat in chats if (row := row_in_chat(chat, probe)) is not None]
    if chats and len(rows) == len(chats):
        return rows
    alone = Row.of(probe)
    return [alone] if text is None else [alone, row_after(text, probe, context)]


def row_in_chat(prompt: Sequence[int], probe: Sequence[int]) -> Row | None:
    """A chat up to the end of the user's words, with the same tokens scored as in `Row.of(probe)`.

    Args:
        prompt: tokens of the chat as the engine will see it.
        probe: tokens of the end of the user's words, at least two.

    Returns:
        The row; None if it is too long, or the words are other tokens in the chat.
    """
    words = tuple(probe[1:])
    for end in range(len(prompt), len(words), -1):
        start = end - len(words)
        if tuple(prompt[start:end]) == words:
            return Row.of(prompt[:end], ((start, end),)) if end <= MAX_CHAT_TOKENS else None
    return None


def row_after(text: Sequence[int], probe: Sequence[int], context: int) -> Row:
    """The end of a prompt after a text, with the same tokens scored as in `Row.of(probe)`.

    Args:
        text: tokens of the text, of which the end is used if both exceed the context.
        probe: tokens of the prompt's end, at least two.
        context: largest number of tokens.
    """
    before = max(0, context - len(probe))
    tokens = (*text[max(0, len(text) - before) :], *probe)
    # The loss of a first token is not defined, so it is not scored here either.
    return Row.of(tokens, ((len(tokens) - len(probe) + 1, len(tokens)),))
