"""How the cost of a request grows with steps, lengths, corpus, concurrency, adapters, model size.

Steps and concurrency come from the cells of `benchmarks/latency/main.py`; the rest is measured
here. Corpora of a given length or size hold random tokens and the synthetic vectors of
`benchmarks/selection/growth.py`, so that they differ in nothing else; `make bench-selection`
continues to a million sequences. Larger models have random weights and the bundled tokenizer. All
sequences of a corpus have the same length.

A line is fitted through requests, not through medians, by least squares. It bends where two
connected lines fit clearly better (BIC, by MARGIN) and the slope changes by more than LEAST_CHANGE,
though not within a quarter of the values from an end, where a few points would decide. Two measured
values of x give a line and no more; three or four can only hint at a bend.
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
from benchmarks.latency.client import TIMEOUT_SECONDS, Answer, Load, excerpts, send, send_load
from benchmarks.selection.growth import draw_embeddings
from benchmarks.training.peft_loop import SUBJECTS, folder_of
from selection.corpus.corpus import Corpus
from selection.corpus.sqlite_store import Chunk
from selection.embedding import load_embedder
from selection.ingest.ingest import tokenizer_digest
from serving.config import bundled_model

MARGIN, LEAST_CHANGE = 10.0, 0.2
# Tokens of prompt and answer, and the budget, where they do not vary.
PROMPT, ANSWER, STEADY = 128, 32, "steps=5"
RESIDENT = tuple(f"resident-{number}" for number in range(8))  # adapters of the resident server
_BATCH_ANSWER_TOKENS = 64  # long enough that all requests share a batch
_LENGTH_CORPUS, _SIZE_CORPUS = "length-{}", "size-{}"  # names of corpora
_DEFAULT_TOKENS = 256  # of a sequence
_DOCUMENT_SEQUENCES = 1000
_VOCABULARY = 4096

Point = tuple[float, float]
Once = Callable[[str, Callable[[], Any]], Any]


@dataclass(frozen=True)
class Growth:
    """The amount of work of the growth curves.

    Attributes:
        requests: requests for each value of a variable.
        tokens: sequence lengths; _DEFAULT_TOKENS among them.
        sizes: corpus sizes, in sequences.
        adapters: numbers of adapters in a batch.
        models: names of SUBJECTS, beside the bundled model.
    """

    requests: int
    tokens: tuple[int, ...]
    sizes: tuple[int, ...]
    adapters: tuple[int, ...]
    models: tuple[str, ...]


@dataclass(frozen=True)
class Fit:
    """The line y = intercept + slope x, and where it bends, if it does.

    Attributes:
        intercept: value at x = 0, of the bent line if there is a bend.
        slope: slope of the single line, even where a bent one fits better.
        explained: share of the variance that the single line explains.
        bend: x of the bend; None for a straight line.
        slope_before: slope up to the bend.
        slope_after: slope after the bend.
        least: least measured x.
        most: greatest measured x.
        values: number of different x.
        requests: number of points.
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
    """The line through points, and its bend; None where x has a single value."""
    x, y = np.array(points, np.float64).reshape(-1, 2).T
    values = np.unique(x)
    if len(values) < 2:
        return None
    (intercept, slope), line_residual = _least_squares(np.stack([np.ones_like(x), x], 1), y)
    total_variance = float(((y - y.mean()) ** 2).sum())
    candidates = []
    margin_values = max(1, len(values) // 4)
    for knot in values[margin_values:-margin_values]:
        (start, before, change), residual = _least_squares(
            np.stack([np.ones_like(x), x, np.maximum(x - knot, 0)], 1), y
        )
        if abs(change) > LEAST_CHANGE * abs(slope):
            candidates.append(
                (_bic(residual, len(x), 4), float(knot), start, before, before + change)
            )
    better = [
        answer for answer in candidates if answer[0] + MARGIN < _bic(line_residual, len(x), 2)
    ]
    _, bend, intercept, before, after = (
        min(better) if better else (0.0, None, intercept, slope, slope)
    )
    return Fit(
        intercept=intercept,
        slope=slope,
        explained=1 - line_residual / total_variance if total_variance else 1.0,
        bend=bend,
        slope_before=before,
        slope_after=after,
        least=float(values[0]),
        most=float(values[-1]),
        values=len(values),
        requests=len(x),
    )


def _least_squares(columns: Any, y: Any) -> tuple[list[float], float]:
    result = np.linalg.lstsq(columns, y, rcond=None)[0]
    return result.tolist(), float(((y - columns @ result) ** 2).sum())


def _bic(residual: float, points: int, parameters: int) -> float:
    return points * math.log(max(residual, 1e-18) / points) + parameters * math.log(points)


def per_step(answer: Answer) -> float:
    """Seconds of training per step."""
    return float(answer.report["seconds"]["train"]) / int(answer.report["spent"]["steps"])


def grow(
    plan: Growth, url: Callable[[str], str], home: Path, once: Once, seed: int
) -> dict[str, list[Point]]:
    """Measure the points of every growth curve.

    Args:
        plan: amount of work.
        url: returns the base URL of the server "mayfly" or "resident", and starts it if needed.
        home: Mayfly's home, with the corpora of `create_synthetic_corpora`.
        once: measures something under a name, or returns what a former run has measured.
        seed: seed of the prompts.

    Returns:
        Points by the variable that grows.
    """
    load = Load(
        STEADY, plan.requests, PROMPT, ANSWER, corpus=_LENGTH_CORPUS.format(_DEFAULT_TOKENS)
    )
    result: dict[str, list[Point]] = {
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
        result[f"million parameters, a {part}"] = [
            point for model in models for point in model[part]
        ]
    return result


def by_length(url: str, load: Load, lengths: Sequence[int], seed: int) -> list[Point]:
    """Tokens of a sequence, and seconds per step."""
    return _by_corpus(url, load, {n: _LENGTH_CORPUS.format(n) for n in lengths}, per_step, seed)


def by_size(url: str, load: Load, sizes: Sequence[int], seed: int) -> list[Point]:
    """Sequences of a corpus, and seconds of search and selection."""

    def search_seconds(answer: Answer) -> float:
        return float(answer.report["seconds"]["search"] + answer.report["seconds"]["select"])

    return _by_corpus(url, load, {n: _SIZE_CORPUS.format(n) for n in sizes}, search_seconds, seed)


def by_adapters(url: str, load: Load, counts: Sequence[int], seed: int) -> list[Point]:
    """Different adapters in a batch, and seconds per token.

    The number of concurrent requests is always that of RESIDENT.
    """
    load = replace(load, budget=None, corpus=None, answer=_BATCH_ANSWER_TOKENS)

    async def send_together(models: Sequence[str], prompts: Sequence[str]) -> list[Answer]:
        async with httpx.AsyncClient(base_url=url, timeout=TIMEOUT_SECONDS) as client:
            loads = [replace(load, model=model) for model in models]
            return await asyncio.gather(
                *(send(client, *answer) for answer in zip(loads, prompts, strict=True))
            )

    points: list[Point] = []
    # The first turn loads all adapters and does not count.
    for number, count in enumerate([counts[-1], *counts]):
        progress(f"growth: {count} adapters in a batch")
        for repetition in range(load.requests):
            prompts = excerpts(
                replace(load, requests=len(RESIDENT)), seed + 1000 * number + repetition
            )
            answers = asyncio.run(
                send_together([RESIDENT[i % count] for i in range(len(RESIDENT))], prompts)
            )
            points += [
                (count, answer.stages()["per token"])
                for answer in answers
                if number and not answer.is_short(load)
            ]
    return points


def by_model(url: str, load: Load, millions: float, seed: int) -> dict[str, list[Point]]:
    """Millions of parameters of a server's model, and seconds per step and per token."""
    send_load(url, replace(load, requests=1), seed)  # warm-up
    answers, _ = send_load(url, load, seed + 1)
    valid = [answer for answer in answers if not answer.is_short(load)]
    return {
        "step": [(millions, per_step(answer)) for answer in valid],
        "token": [(millions, answer.stages()["per token"]) for answer in valid],
    }


def _by_random_model(home: Path, name: str, load: Load, seed: int) -> dict[str, list[Point]]:
    """Run `by_model` on a server with a model of random weights."""
    with folder_of(next(subject for subject in SUBJECTS if subject.name == name)) as model:
        AutoTokenizer.from_pretrained(bundled_model()).save_pretrained(model)
        with mayfly_server(home, "--model", model, "--served-model-name", MODEL) as server:
            return by_model(server.url, load, parameters(model) / 1e6, seed)


def parameters(model: str) -> int:
    """Number of parameters of a model, by its configuration."""
    with torch.device("meta"):
        blank = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(model))  # type: ignore[no-untyped-call]
    return sum(answer.numel() for answer in blank.parameters())


def create_synthetic_corpora(home: Path, plan: Growth) -> None:
    """Create the corpora that `grow` selects from."""
    embedder = load_embedder()
    digest = tokenizer_digest(AutoTokenizer.from_pretrained(bundled_model()))
    corpora = {
        _LENGTH_CORPUS.format(tokens): (_DOCUMENT_SEQUENCES, tokens) for tokens in plan.tokens
    }
    corpora |= {_SIZE_CORPUS.format(count): (count, min(plan.tokens)) for count in plan.sizes}
    for name, (count, tokens) in corpora.items():
        progress(f"corpus {name}")
        corpus = Corpus.create(home / "corpora", name, embedder, digest)
        vectors_ND, _ = draw_embeddings(count, 0)
        sequences = np.random.default_rng(0).integers(3, _VOCABULARY, (count, tokens)).tolist()
        for start in range(0, count, _DOCUMENT_SEQUENCES):
            document = [
                Chunk(0, "", tuple(sequence))
                for sequence in sequences[start : start + _DOCUMENT_SEQUENCES]
            ]
            corpus.add(str(start), name, document, vectors_ND[start : start + _DOCUMENT_SEQUENCES])
        corpus.build_index()
        corpus.close()


def _by_corpus(
    url: str, load: Load, corpora: Mapping[int, str], value_of: Callable[[Answer], float], seed: int
) -> list[Point]:
    points: list[Point] = []
    for number, (x, corpus) in enumerate(corpora.items()):
        progress(f"growth: corpus {corpus}")
        corpus_load = replace(load, corpus=corpus)
        send_load(url, replace(corpus_load, requests=1), seed + 100 * number)  # opens the corpus
        answers, _ = send_load(url, corpus_load, seed + 100 * number + 1)
        points += [(x, value_of(answer)) for answer in answers if not answer.is_short(corpus_load)]
    return points


def fitted(grown: Mapping[str, Sequence[Point]]) -> dict[str, Any]:
    """The points and the line of each growth curve."""
    lines = {what: fit(points) for what, points in grown.items()}
    return {
        what: {"fit": None if line is None else asdict(line), "points": grown[what]}
        for what, line in lines.items()
    }


def growth_table(grown: Mapping[str, Any]) -> Table:
    """The fits as a table: number of values (and points), seconds at 0, and slopes."""
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
    for what, result in grown.items():
        line = result["fit"]
        if line is None:
            table.add_row(what, *[""] * 5, "no line")
            continue
        ends = (
            f"{line['least']:,.0f}",
            f"{line['most']:,.0f}",
            f"{line['values']} ({line['requests']})",
        )
        bend_cells = (
            () if line["bend"] is None else (f"{line['bend']:,.0f}", f"{line['slope_after']:.3g}")
        )
        value_of = (
            f"{line['intercept']:.3g}",
            f"{line['slope_before']:.3g}",
            f"{line['explained']:.2f}",
        )
        table.add_row(what, *ends, *value_of, *bend_cells)
    return table
