"""How a request's cost grows: with steps, sequence length, corpus size, concurrency, adapters in a
batch, model size.

The part of `benchmarks/latency/main.py` about growth. Steps and concurrency are read off the requests
that it has asked anyway; the rest is asked here. Corpora of a given length or size hold random
tokens and the synthetic vectors of `benchmarks/selection/growth.py`, so that nothing but that number differs;
`make bench-selection` goes on to a million sequences. Larger models have random weights and the
bundled tokenizer. A sequence's length is that of every one that is trained.

A line is fitted through requests, not through medians, by least squares. Where two lines that meet
do clearly better (BIC, by MARGIN) and the slope changes by more than LEAST_CHANGE, it bends there,
though not within a quarter of the values from an end, where a few points would decide it; two
measured values of x give a line and no more, and three or four can only hint at a bend.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import torch
from rich.table import Table
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from benchmarks.harness.command_line import progress
from benchmarks.harness.server import MODEL, mayfly_server
from benchmarks.latency.bench_serve import PATIENCE_SECONDS, Answer, Load, ask, ask_all, pieces
from benchmarks.selection.growth import draw
from benchmarks.training.peft_loop import SUBJECTS, folder_of
from selection.corpus.corpus import Corpus
from selection.corpus.sqlite_store import Chunk
from selection.embedding import load_embedder
from selection.ingest.ingest import tokenizer_digest
from serving.config import bundled_model

MARGIN, LEAST_CHANGE = 10.0, 0.2
PROMPT, ANSWER, STEADY = 128, 32, "steps=5"  # of a request, where they do not grow
RESIDENT = tuple(f"resident-{number}" for number in range(8))  # adapters that a server holds
_LONG = 64  # tokens of an answer that is there for its batch
_LENGTH, _SIZE = "length-{}", "size-{}"  # names of corpora
_USUAL = 256  # tokens of a sequence
_DOCUMENT = 1000  # sequences
_VOCABULARY = 4096

Point = tuple[float, float]
Once = Callable[[str, Callable[[], Any]], Any]


@dataclass(frozen=True)
class Growth:
    """How much is asked.

    Attributes:
        requests: for each value of what grows.
        tokens: of a sequence, the usual number among them.
        sizes: of a corpus, in sequences.
        adapters: in a batch.
        models: of SUBJECTS, beside the bundled one.
    """

    requests: int
    tokens: tuple[int, ...]
    sizes: tuple[int, ...]
    adapters: tuple[int, ...]
    models: tuple[str, ...]


@dataclass(frozen=True)
class Fit:
    """y = intercept + slope x, and where it bends, if it does: from there on the slope is another.

    Attributes:
        intercept: where x is 0, of the line that bends, if it does.
        slope: of the one line, whether or not another that bends does better.
        explained: the share of the variance that the one line explains.
        least, most: x that was measured.
        values, requests: how many different x, and how many points.
    """

    intercept: float
    slope: float
    explained: float
    bend: float | None
    slope_before: float
    slope_after: float
    least: float
    most: float
    values: int
    requests: int


def fit(points: Sequence[Point]) -> Fit | None:
    """The line through points, and its bend; None where x takes one value only."""
    x, y = np.array(points, np.float64).reshape(-1, 2).T
    values = np.unique(x)
    if len(values) < 2:
        return None
    (intercept, slope), rest = _least_squares(np.stack([np.ones_like(x), x], 1), y)
    total = float(((y - y.mean()) ** 2).sum())
    bends = []
    few = max(1, len(values) // 4)
    for knot in values[few:-few]:
        (start, before, change), left = _least_squares(
            np.stack([np.ones_like(x), x, np.maximum(x - knot, 0)], 1), y
        )
        if abs(change) > LEAST_CHANGE * abs(slope):
            bends.append((_bic(left, len(x), 4), float(knot), start, before, before + change))
    better = [each for each in bends if each[0] + MARGIN < _bic(rest, len(x), 2)]
    _, bend, intercept, before, after = (
        min(better) if better else (0.0, None, intercept, slope, slope)
    )
    return Fit(
        intercept=intercept,
        slope=slope,
        explained=1 - rest / total if total else 1.0,
        bend=bend,
        slope_before=before,
        slope_after=after,
        least=float(values[0]),
        most=float(values[-1]),
        values=len(values),
        requests=len(x),
    )


def _least_squares(columns: Any, y: Any) -> tuple[list[float], float]:
    found = np.linalg.lstsq(columns, y, rcond=None)[0]
    return found.tolist(), float(((y - columns @ found) ** 2).sum())


def _bic(residual: float, points: int, parameters: int) -> float:
    return points * math.log(max(residual, 1e-18) / points) + parameters * math.log(points)


def per_step(answer: Answer) -> float:
    """Seconds of training for each step that was taken."""
    return float(answer.report["seconds"]["train"]) / int(answer.report["spent"]["steps"])


def grow(
    plan: Growth, url: Callable[[str], str], home: Path, once: Once, seed: int
) -> dict[str, list[Point]]:
    """Points by what grows.

    Args:
        plan: how much is asked.
        url: of the server of that name, "mayfly" or "resident", which is started if it does not
            run.
        home: of Mayfly, with the corpora of `synthetic`.
        once: measures, or remembers, what has that name.
        seed: of the prompts.
    """
    load = Load(STEADY, plan.requests, PROMPT, ANSWER, corpus=_LENGTH.format(_USUAL))
    found: dict[str, list[Point]] = {
        "sequence tokens": once(
            "growth, tokens", lambda: by_length(url("mayfly"), load, plan.tokens, seed)
        ),
        "corpus sequences": once(
            "growth, corpus", lambda: by_size(url("mayfly"), load, plan.sizes, seed + 1)
        ),
        "adapters in a batch": once(
            "growth, adapters", lambda: by_adapters(url("resident"), load, plan.adapters, seed + 2)
        ),
    }
    size = parameters(bundled_model()) / 1e6
    models = [once("growth, nano", lambda: by_model(url("mayfly"), load, size, seed + 3))]
    models += [
        once(f"growth, {name}", partial(_by_random_model, home, name, load, seed + 3))
        for name in plan.models
    ]
    for part in ("step", "token"):
        found[f"million parameters, a {part}"] = [
            point for model in models for point in model[part]
        ]
    return found


def by_length(url: str, load: Load, lengths: Sequence[int], seed: int) -> list[Point]:
    """Tokens of a sequence and seconds a step, of the corpora that `synthetic` made for these
    lengths.
    """
    return _asked(url, load, {n: _LENGTH.format(n) for n in lengths}, per_step, seed)


def by_size(url: str, load: Load, sizes: Sequence[int], seed: int) -> list[Point]:
    """Sequences of a corpus and seconds to search it and to choose."""

    def searched(answer: Answer) -> float:
        return float(answer.report["seconds"]["search"] + answer.report["seconds"]["select"])

    return _asked(url, load, {n: _SIZE.format(n) for n in sizes}, searched, seed)


def by_adapters(url: str, load: Load, counts: Sequence[int], seed: int) -> list[Point]:
    """Different adapters in a batch and seconds a token: always as many requests, of so many of
    RESIDENT.
    """
    load = replace(load, budget=None, corpus=None, answer=_LONG)

    async def together(models: Sequence[str], prompts: Sequence[str]) -> list[Answer]:
        async with httpx.AsyncClient(base_url=url, timeout=PATIENCE_SECONDS) as client:
            loads = [replace(load, model=model) for model in models]
            return await asyncio.gather(
                *(ask(client, *each) for each in zip(loads, prompts, strict=True))
            )

    points: list[Point] = []
    # The first loads them all, and does not count.
    for number, count in enumerate([counts[-1], *counts]):
        progress(f"growth: {count} adapters in a batch")
        for turn in range(load.requests):
            prompts = pieces(replace(load, requests=len(RESIDENT)), seed + 1000 * number + turn)
            answers = asyncio.run(
                together([RESIDENT[i % count] for i in range(len(RESIDENT))], prompts)
            )
            points += [
                (count, each.stages()["per token"])
                for each in answers
                if number and not each.falls_short(load)
            ]
    return points


def by_model(url: str, load: Load, millions: float, seed: int) -> dict[str, list[Point]]:
    """Millions of parameters of the one model that a server has, and seconds a step and a token."""
    ask_all(url, replace(load, requests=1), seed)  # warm
    answers, _ = ask_all(url, load, seed + 1)
    sound = [answer for answer in answers if not answer.falls_short(load)]
    return {
        "step": [(millions, per_step(answer)) for answer in sound],
        "token": [(millions, answer.stages()["per token"]) for answer in sound],
    }


def _by_random_model(home: Path, name: str, load: Load, seed: int) -> dict[str, list[Point]]:
    """As `by_model`, of a server of its own with random weights."""
    with folder_of(next(subject for subject in SUBJECTS if subject.name == name)) as model:
        AutoTokenizer.from_pretrained(bundled_model()).save_pretrained(model)
        with mayfly_server(home, "--model", model, "--served-model-name", MODEL) as server:
            return by_model(server.url, load, parameters(model) / 1e6, seed)


def parameters(model: str) -> int:
    """How many a model has, by its configuration."""
    with torch.device("meta"):
        blank = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(model))  # type: ignore[no-untyped-call]
    return sum(each.numel() for each in blank.parameters())


def synthetic(home: Path, plan: Growth) -> None:
    """Make the corpora that `grow` chooses from."""
    embedder = load_embedder()
    digest = tokenizer_digest(AutoTokenizer.from_pretrained(bundled_model()))
    wanted = {_LENGTH.format(tokens): (_DOCUMENT, tokens) for tokens in plan.tokens}
    wanted |= {_SIZE.format(count): (count, min(plan.tokens)) for count in plan.sizes}
    for name, (count, tokens) in wanted.items():
        progress(f"corpus {name}")
        corpus = Corpus.create(home / "corpora", name, embedder, digest)
        vectors_ND, _ = draw(count, 0)
        drawn = np.random.default_rng(0).integers(3, _VOCABULARY, (count, tokens)).tolist()
        for start in range(0, count, _DOCUMENT):
            document = [
                Chunk(0, "", tuple(sequence)) for sequence in drawn[start : start + _DOCUMENT]
            ]
            corpus.add(str(start), name, document, vectors_ND[start : start + _DOCUMENT])
        corpus.build_index()
        corpus.close()


def _asked(
    url: str, load: Load, corpora: Mapping[int, str], told: Callable[[Answer], float], seed: int
) -> list[Point]:
    points: list[Point] = []
    for number, (x, corpus) in enumerate(corpora.items()):
        progress(f"growth: corpus {corpus}")
        asked = replace(load, corpus=corpus)
        ask_all(url, replace(asked, requests=1), seed + 100 * number)  # opens it
        answers, _ = ask_all(url, asked, seed + 100 * number + 1)
        points += [(x, told(answer)) for answer in answers if not answer.falls_short(asked)]
    return points


def fitted(grown: Mapping[str, Sequence[Point]]) -> dict[str, Any]:
    """The points of each thing that grows, and their line."""
    lines = {what: fit(points) for what, points in grown.items()}
    return {
        what: {"fit": None if line is None else asdict(line), "points": grown[what]}
        for what, line in lines.items()
    }


def growth_table(grown: Mapping[str, Any]) -> Table:
    """The fits, for people: how many values (and points), seconds at 0 and for each more, before
    and after the bend.
    """
    names = (
        "seconds against",
        "from",
        "to",
        "values",
        "at 0",
        "each",
        "explained",
        "bend",
        "then each",
    )
    table = Table(*names, box=None, pad_edge=False)
    for what, found in grown.items():
        line = found["fit"]
        if line is None:
            table.add_row(what, *[""] * 5, "no line")
            continue
        ends = (
            f"{line['least']:,.0f}",
            f"{line['most']:,.0f}",
            f"{line['values']} ({line['requests']})",
        )
        bent = (
            () if line["bend"] is None else (f"{line['bend']:,.0f}", f"{line['slope_after']:.3g}")
        )
        told = (
            f"{line['intercept']:.3g}",
            f"{line['slope_before']:.3g}",
            f"{line['explained']:.2f}",
        )
        table.add_row(what, *ends, *told, *bent)
    return table
