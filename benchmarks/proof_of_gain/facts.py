"""Facts: questions on the invented handbook, asked as a chat, and how many answers are right.

The adapters are those that the server would answer with; what is shown stands in the system
message, where the server puts it. A plain model of transformers generates the answer, greedily; its
first line that is not blank counts.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer

from benchmarks.corpus_adapters.arms import (
    BASE,
    COMBINED,
    FRESH,
    INSTANT,
    SHOWN,
    Arm,
    Training,
)
from benchmarks.corpus_adapters.corpora import HeldOut
from benchmarks.corpus_adapters.learning import open_selector
from benchmarks.corpus_adapters.quality import QualityRunner, ResidentModel
from benchmarks.corpus_adapters.study import Study
from benchmarks.harness.measures import TimeLimit
from benchmarks.proof_of_gain.arms import SHOWN_ALONE
from benchmarks.proof_of_gain.handbook import is_right, make_handbook
from benchmarks.proof_of_gain.next_line import LineWriter, first_line
from benchmarks.quality.passages import Passage, make_corpus
from selection import Selection
from selection.corpus.sequences import Source
from selection.embedding import Prompt
from selection.request import SelectionRequest
from serving.adaptation.shown import Body, PromptBuilder, Prompts, with_shown

# Number of questions by budget; None for all.
QUESTIONS: Mapping[str, int | None] = {"small": 12, "full": None}
# Tokens of an answer, at most.
ANSWER_TOKENS = 32
# Each is asked with the chosen text in the prompt and without.
ARMS = (BASE, FRESH, INSTANT, COMBINED)
# The base model with the one document in its prompt that has the answer.
ORACLE = "base, its document shown"
# With fewer steps from scratch, which COMBINED takes where the corpus's adapter does not help.
_TRAININGS = (
    Training("fresh", (COMBINED.steps, FRESH.steps)),
    Training("corpus", (COMBINED.steps,)),
)
# A question is a passage whose prompt is all of its tokens.
_WHOLE = 1 << 20
_HANDBOOK = "handbook"


class Facts:
    """The handbook's questions to one model.

    Args:
        model: folder of the base model.
        folder: where the corpus and the answers are kept.
        questions: number of questions; None for all.
        workers: number of questions at once; each takes one core.
    """

    def __init__(self, model: str, folder: Path, questions: int | None, workers: int) -> None:
        self._model, self._questions = model, questions
        make = partial(hold_out, model)
        self._study = Study(model, folder, ("corpus",), lambda _, home: make(home), workers)

    def prepare(self, limit: TimeLimit) -> dict[str, HeldOut]:
        """Make the corpus of the handbook, and train its adapter until the limit."""
        return self._study.prepare((_HANDBOOK,), limit)

    def measure(self, training: TimeLimit, limit: TimeLimit) -> dict[str, Any] | None:
        """Ask the questions; None if there was no answer until the limit."""
        held_out = {
            name: replace(made, passages=made.passages[: self._questions])
            for name, made in self.prepare(training).items()
        }
        runner = partial(FactsRunner, self._model, self._study.homes["corpus"])
        measured = self._study.measure(held_out, runner, limit)
        if not measured:
            return None
        made = held_out[_HANDBOOK]
        return {
            "handbook": {**made.facts, "sequences": made.sequences},
            "learnt": self._study.learnt(held_out)[_HANDBOOK]["corpus"],
            "rows": [{"document": passage.name, **found} for _, passage, found in measured],
        }


def hold_out(model: str, home: Path) -> HeldOut:
    """Make the corpus of the handbook; its passages are the questions.

    Args:
        model: folder of the base model.
        home: gets the corpus.
    """
    handbook, tokenizer = make_handbook(), AutoTokenizer.from_pretrained(model)
    selector = open_selector(home, model)
    try:
        corpus, sequences = make_corpus(_HANDBOOK, (), handbook.documents, selector, tokenizer)
    finally:
        selector.corpora.close()
    questions = tuple(
        Passage(
            _HANDBOOK,
            each.document,
            number,
            tuple(tokenizer.encode(each.text, add_special_tokens=False)),
            each.text,
            each.answer,
        )
        for number, each in enumerate(handbook.questions)
    )
    facts = {
        "documents": len(handbook.documents),
        "bytes": sum(len(each.text.encode()) for each in handbook.documents),
    }
    return HeldOut(corpus, sequences, questions, facts)


class AnswerWriter(LineWriter):
    """Generates the answers of a chat, with adapters or without."""

    @torch.no_grad()
    def answer(self, prompt: Sequence[int], weights: bytes | None) -> str:
        """The first line of the answer to a prompt that is not blank, by greedy decoding.

        Args:
            prompt: tokens of the prompt.
            weights: an adapter as a trainer exports it; None for the base model.
        """
        ids = torch.tensor([prompt])
        with self._merged(weights):
            output = self._model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=ANSWER_TOKENS,
                do_sample=False,
                pad_token_id=self._tokenizer.eos_token_id,
            )
        text: str = self._tokenizer.decode(output[0, len(prompt) :], skip_special_tokens=True)
        return first_line(text)


class FactsRunner:
    """Asks questions, one at a time; for one thread.

    Args:
        model: folder of the base model.
        home: home of the corpus.
    """

    def __init__(self, model: str, home: Path) -> None:
        self._resident, self._selector = ResidentModel(model, _WHOLE), open_selector(home, model)
        self._adapters = QualityRunner(
            self._resident, {"corpus": self._selector}, _TRAININGS, shown_too=()
        )
        self._writer = AnswerWriter(model, self._resident.trainer.scale)
        self._documents = {each.name: each.text for each in make_handbook().documents}

    def measure(self, passage: Passage, corpus: str) -> dict[str, Any]:
        """The answer of each arm and whether it is right, and whether what BASE shows has it."""
        question, answer = passage.prefix, passage.suffix
        adapters = self._adapters.answers(passage, corpus)
        request = SelectionRequest([Prompt(question)], corpus, steps=FRESH.steps)
        selection = self._selector.select(request)
        asked: Body = {
            "messages": [{"role": "user", "content": question}],
            "max_tokens": ANSWER_TOKENS,
        }
        lines = {}
        for arm in ARMS:
            weights = adapters[arm].weights
            for shown in (False, True):
                body = self._shown(asked, selection, arm) if shown else asked
                lines[replace(arm, shown=shown).name] = self._line(body, weights)
        source = Source(0, 0, passage.name, 0, self._documents[passage.name])
        lines[ORACLE] = self._line(with_shown(asked, [source], self._resident.tokenizer))
        first = self._shown(asked, selection, SHOWN_ALONE)["messages"][0]
        return {
            "question": question,
            "answer": answer,
            "is_shown": is_right(first["content"], answer),
            "arms": {
                arm: {"right": is_right(line, answer), "line": line} for arm, line in lines.items()
            },
        }

    def _shown(self, body: Body, selection: Selection, arm: Arm) -> Body:
        """The body with the chosen sequences in its prompt, as many as the server would show."""

        async def render(longer: Body) -> Prompts:
            return (tuple(self._tokens(longer)),)

        async def choose() -> Sequence[Source]:
            return _distinct(selection, arm)

        builder = PromptBuilder(self._resident.context, self._resident.tokenizer, render)
        longer, _ = asyncio.run(builder.show(body, SHOWN, choose))
        return longer

    def _line(self, body: Body, weights: bytes | None = None) -> str:
        return self._writer.answer(self._tokens(body), weights)

    def _tokens(self, body: Body) -> list[int]:
        """The prompt of a chat, as the engine sees it."""
        tokenizer = self._resident.tokenizer
        text = tokenizer.apply_chat_template(
            body["messages"], tokenize=False, add_generation_prompt=True
        )
        tokens: list[int] = tokenizer.encode(text, add_special_tokens=False)
        return tokens


def _distinct(selection: Selection, arm: Arm) -> list[Source]:
    """The different sequences among those that an arm chooses, in the order of their choice."""
    sources = {source.sequence: source for source, _ in selection.sources}
    return [sources[each] for each in dict.fromkeys(selection.ids[: max(arm.steps, SHOWN)])][:SHOWN]
