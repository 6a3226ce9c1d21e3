"""Proof: what each way to use a corpus gains on a real model, on text that is younger than it.

- first-token: what an engine adds to the first token of an answer.
- arms: bits per byte of held-out text in per cent of the base model's, the next line of code, and
  seconds to the first token: the chosen text in the prompt, an adapter for the request, one for the
  corpus, all together, and what the server's `auto` does.
  With `--trainings none` only what takes no step, and `auto`: seconds for a passage, where all arms
  take minutes. It is a part of its own.
- strategies: SIFT beside nearest neighbours, on corpora of their own: as they are, without near
  copies, and with another embedder.
- facts: questions on a handbook of invented facts, by how many answers are right.

An interrupted run of the same code and size goes on, and one with the `--out` of such a run adds
its passages to that, also on another machine; `--prepare` makes and trains its corpora ahead.
`--budget small` takes ten minutes on two cores. Parts that are not measured are kept from `--out`,
if that exists.

    python -m benchmarks.proof [--budget small] [--only arms] [--model smollm2] [--seconds 3600]
    [--json] [--out benchmarks/results/proof.json]
"""

from __future__ import annotations

import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Mapping, Sequence
from dataclasses import astuple, replace
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks.corpus_adapters.corpora import HeldOut
from benchmarks.corpus_adapters.former import FormerRun
from benchmarks.corpus_adapters.learning import start_rate
from benchmarks.corpus_adapters.result import merged
from benchmarks.corpus_adapters.study import Study, passage_key
from benchmarks.harness.command_line import argument_parser, progress, write_result
from benchmarks.harness.measures import TimeLimit
from benchmarks.harness.provenance import CACHE, provenance, source_digest
from benchmarks.proof_of_gain.arms import TRAININGS
from benchmarks.proof_of_gain.cases import SIZES, Case, Size, cases, hold_out
from benchmarks.proof_of_gain.facts import QUESTIONS, Facts
from benchmarks.proof_of_gain.first_token import measure_first_token
from benchmarks.proof_of_gain.result import part_name, result_of, show
from benchmarks.proof_of_gain.runner import ProofRunner
from benchmarks.quality.passages import Passage
from serving.models.catalogue import model_folder

PARTS = ("first-token", "arms", "strategies", "facts")
# Seconds of a run without `--seconds`.
_SECONDS = {"small": 540.0, "full": None}
# Shares of the time that is left, after which no training and no passage of all arms begins.
_TRAINING_SHARE, _ARMS_SHARE = 0.4, 0.8
# The same for passages, if there are questions after them.
_PASSAGES_SHARE = 0.75
# What all measurements depend on.
_SHARED = (
    "selection/**/*.py",
    "adapters/**/*.py",
    "serving/adaptation/*.py",
    "serving/corpus_training/*.py",
    "serving/budget.py",
    *(f"benchmarks/corpus_adapters/{name}.py" for name in ("arms", "quality")),
    *(f"benchmarks/proof_of_gain/{name}.py" for name in ("arms", "next_line")),
    "benchmarks/quality/passages.py",
)
# What those of passages depend on, and those of questions.
_PASSAGES = (
    *_SHARED,
    *(
        f"benchmarks/proof_of_gain/{name}.py"
        for name in ("auto", "cases", "copies", "runner", "splits", "young_text")
    ),
    "benchmarks/proof_of_gain/young.txt",
)
_QUESTIONS = (
    *_SHARED,
    *(f"benchmarks/proof_of_gain/{name}" for name in ("facts.py", "handbook.py", "handbook.txt")),
)


class Proof:
    """A run.

    Args:
        options: of the command.
        size: the amount of work.
        origin: of the run.

    Attributes:
        arms_part, first_token_part: names of the parts of all arms and of what an engine adds to
            them, or of those without a step.
    """

    def __init__(self, options: Namespace, size: Size, origin: Mapping[str, Any]) -> None:
        self._model = _model(options)
        self._size, self._cases, self._origin = size, cases(size), origin
        # The number of domains and of compared passages changes no measurement.
        key = astuple(replace(size, domains=(), kernel_domains=(), compared=0))
        sources = source_digest(*_PASSAGES)
        name = Path(self._model).name
        self.arms_part = part_name("arms", size.trainings)
        self.first_token_part = part_name("first-token", size.trainings)
        self._former = {
            part: FormerRun(options.out, part, name, key, sources)
            for part in (self.arms_part, "strategies")
        }
        self._study = Study(
            self._model,
            _folder("proof", self._model, key, sources),
            ("corpus",),
            lambda name, home: hold_out(self._cases[name], size, self._model, home),
            options.workers,
        )

    def prepare(self, only: Sequence[str], limit: TimeLimit) -> None:
        """Make the corpora of parts, and train their adapters until the limit."""
        if "arms" in only:
            self._study.prepare(self._named(compares=False), limit)
        if "strategies" in only:
            for name in self._named(compares=True):
                self._study.hold_out(name)

    def first_token(self) -> dict[str, Any]:
        """The costs of the engine."""
        corpus = self._study.hold_out(self._named(compares=False)[0]).corpus
        home = self._study.homes["corpus"]
        measured: dict[str, Any] = self._study.journal.once(
            "first token", partial(measure_first_token, home, self._model, corpus)
        )
        return measured

    def arms(self, training: TimeLimit, limit: TimeLimit) -> dict[str, Any] | None:
        """All arms; None if nothing was measured until the limit."""
        held_out = self._study.prepare(self._named(compares=False), training)
        learnt = "learnt", self._study.learnt(held_out)
        return self._measured(self.arms_part, held_out, limit, learnt)

    def strategies(self, limit: TimeLimit) -> dict[str, Any] | None:
        """Strategies alone; None if nothing was measured until the limit."""
        held_out: dict[str, HeldOut] = {}
        for name in self._named(compares=True):
            if limit.is_over:
                break
            made = self._study.hold_out(name)
            # Of a small corpus, all documents may be near copies.
            if made.sequences:
                held_out[name] = replace(made, passages=made.passages[: self._size.compared])
        return self._measured("strategies", held_out, limit)

    def _named(self, *, compares: bool) -> list[str]:
        return [name for name, case in self._cases.items() if case.compares == compares]

    def _measured(
        self,
        part: str,
        held_out: Mapping[str, HeldOut],
        limit: TimeLimit,
        *tables: tuple[str, Mapping[str, Any]],
    ) -> dict[str, Any] | None:
        former = self._former[part]
        former.add_to(self._study, lambda row: {"arms": row["arms"], "copies": row["copies"]})
        corpora = {each.corpus: self._cases[name] for name, each in held_out.items()}
        runner = partial(ProofRunner, self._model, self._study.homes["corpus"], corpora, self._size)
        measured = self._study.measure(held_out, runner, limit)
        rows = former.with_rows(
            _row(self._cases[name], name, passage, found) for name, passage, found in measured
        )
        if not rows:
            return None
        facts = {
            name: {**each.facts, "sequences": each.sequences} for name, each in held_out.items()
        }
        both = former.fields(self._origin, len(rows), ("corpora", facts), *tables)
        return {"size": vars(self._size), **both, "rows": rows}


def _facts(options: Namespace) -> Facts:
    model, questions = _model(options), QUESTIONS[options.budget]
    # A corpus may be trained for a shorter time where there are fewer questions.
    folder = _folder("proof-facts", model, questions, source_digest(*_QUESTIONS))
    return Facts(model, folder, questions, options.workers)


def _model(options: Namespace) -> str:
    return str(Path(model_folder(options.model)).absolute())


def _folder(name: str, *key: object) -> Path:
    """Where the measurements of runs with the same key are kept."""
    return CACHE / f"{name}-{sha256(repr(key).encode()).hexdigest()[:12]}"


def _row(case: Case, name: str, passage: Passage, found: Mapping[str, Any]) -> dict[str, Any]:
    names = {"domain": case.domain.name, "corpus": case.kind, "kernel": case.kernel}
    return {**names, "document": passage.name, "key": passage_key(name, passage), **found}


def _run(
    proof: Proof, facts: Facts, only: Sequence[str], limit: TimeLimit
) -> dict[str, dict[str, Any] | None]:
    """Measure parts."""
    if "facts" not in only:
        return _run_passages(proof, only, limit)
    found = _run_passages(proof, only, TimeLimit(_PASSAGES_SHARE * limit.left))
    found["facts"] = facts.measure(TimeLimit(_TRAINING_SHARE * limit.left), limit)
    return found


def _run_passages(
    proof: Proof, only: Sequence[str], limit: TimeLimit
) -> dict[str, dict[str, Any] | None]:
    found: dict[str, dict[str, Any] | None] = {}
    if "first-token" in only:
        found[proof.first_token_part] = proof.first_token()
    if "arms" in only:
        until = TimeLimit(_ARMS_SHARE * limit.left) if "strategies" in only else limit
        found[proof.arms_part] = proof.arms(TimeLimit(_TRAINING_SHARE * limit.left), until)
    if "strategies" in only:
        found["strategies"] = proof.strategies(limit)
    return found


def _parser() -> ArgumentParser:
    parser = argument_parser(__doc__)
    add = parser.add_argument
    add("--budget", choices=list(SIZES), default="full", help="amount of work (default: full)")
    add("--only", nargs="+", choices=PARTS, default=PARTS, help="parts (default: all)")
    add("--model", default="smollm2", help="the model (default: %(default)s)")
    add("--seconds", type=float, help="limit of the run (default: of small, ten minutes)")
    add("--workers", type=int, default=2, help="processes, one core each (default: 2)")
    add("--prepare", action="store_true", help="make and train the corpora only")
    size = parser.add_argument_group("size")
    domains = SIZES["full"].domains
    size.add_argument("--domains", nargs="+", choices=domains, metavar="NAME", help="which")
    size.add_argument("--trainings", choices=list(TRAININGS), help="which are compared")
    size.add_argument("--passages", type=int, help="passages of each domain")
    size.add_argument("--corpus-bytes", type=int, help="text of each corpus with an adapter")
    return parser


def main() -> None:
    """Measure, print, write the JSON."""
    options, source = _parser().parse_args(), provenance()
    if options.trainings == "none" and "strategies" in options.only:
        raise SystemExit("strategies are compared after steps: --trainings none needs --only arms")
    size = SIZES[options.budget]
    size = replace(
        size,
        domains=tuple(options.domains or size.domains),
        trainings=options.trainings or size.trainings,
        passages=options.passages or size.passages,
        corpus_bytes=options.corpus_bytes or size.corpus_bytes,
    )
    limit = TimeLimit(options.seconds or _SECONDS[options.budget])
    origin = {key: source[key] for key in ("command", "commit", "machine")}
    proof = Proof(options, size, origin)
    facts = _facts(options)
    if options.prepare:
        proof.prepare(options.only, limit)
        if "facts" in options.only:
            facts.prepare(limit)
        return
    parts = {}
    for name, measured in _run(proof, facts, options.only, limit).items():
        if measured is None:
            print(f"{name}: nothing was measured", file=sys.stderr)
        else:
            rate = start_rate(model_folder(options.model))
            parts[name] = {**origin, "workers": options.workers, "start_rate": rate, **measured}
    progress("")
    result, numbers = result_of(merged(options.out, parts))
    show(result, Console(stderr=options.json))
    model = Path(options.model).name
    write_result(options, {**source, "model": model, "budget": options.budget, **result}, numbers)


if __name__ == "__main__":
    main()
