"""The factor on what the adapter of a corpus adds to the base model, on held-out text.

The defaults of `adapters.model_defaults` were chosen by it, on text on which nothing else reports
adapters of corpora. An interrupted run goes on; other models are kept from `--out`.

    python -m benchmarks.corpus_scaling [--model smollm2] [--json]
    [--out benchmarks/results/corpus-scaling.json]
"""

from __future__ import annotations

import math
from argparse import ArgumentParser
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any, TypeAlias

from rich.console import Console
from rich.table import Table

from benchmarks.corpus_adapters.corpora import Size, hold_out
from benchmarks.corpus_adapters.learning import trained_shape, trainer_config
from benchmarks.corpus_adapters.result import merged as merged_parts
from benchmarks.corpus_adapters.study import Study
from benchmarks.harness.command_line import argument_parser, write_result
from benchmarks.harness.measures import TimeLimit
from benchmarks.harness.provenance import CACHE, provenance, source_digest
from benchmarks.quality.bootstrap import interval
from benchmarks.quality.passages import Passage, open_scorer
from selection.corpus.corpus import Corpus
from selection.corpus.trained.merge import merged
from serving.models.catalogue import model_folder

FACTORS = (0.0, 0.4, 0.55, 0.7, 0.85, 1.0, 1.25)
SIZE = Size(("TypeScript", "tutorials", "YAML"), "scaling", 10, 384, 96, 150_000)
_HASHED = (
    "selection/corpus/trained/*.py",
    "adapters/**/*.py",
    "benchmarks/corpus_adapters/corpora.py",
    "benchmarks/corpus_scaling.py",
    "benchmarks/quality/passages.py",
)

# Bits per byte by factor, as JSON has it.
Bits: TypeAlias = dict[str, float]


@dataclass(frozen=True)
class Row:
    """A passage: its corpus, its document, and its bits per byte by factor."""

    corpus: str
    document: str
    bits: Bits


class ScaledScorer:
    """Scores passages with the adapters of corpora at several factors.

    Args:
        model: folder of the base model.
        home: home of the corpora.
        prefix: tokens of a passage that are its prompt.
    """

    def __init__(self, model: str, home: Path, prefix: int) -> None:
        self._scorer = open_scorer(trainer_config(model))
        self._home, self._shape, self._prefix = home, trained_shape(model), prefix
        self._adapters: dict[str, bytes] = {}

    def measure(self, passage: Passage, corpus: str) -> Bits:
        """Bits per byte of a passage's suffix by factor; 0 is the base model."""
        whole, size = self._adapter(corpus), len(passage.suffix.encode())
        nats = {
            str(factor): self._scorer.nats(
                passage.tokens, self._prefix, merged([(whole, 1.0, factor)]) if factor else None
            )
            for factor in FACTORS
        }
        return {factor: found / math.log(2) / size for factor, found in nats.items()}

    def _adapter(self, name: str) -> bytes:
        """The adapter of a corpus in one part, as it was trained."""
        if name not in self._adapters:
            corpus = Corpus.open(self._home / "corpora", name)
            info = corpus.training.status(self._shape).info
            assert info is not None, "the corpus has an adapter"
            (part,) = info.parts
            self._adapters[name] = corpus.training.part(part.name).weights
            corpus.close()
        return self._adapters[name]


def measure(model: str, size: Size, workers: int) -> dict[str, Any]:
    """Train the adapters, score the passages, and compare the factors.

    Args:
        model: folder of the base model.
        size: corpora and passages.
        workers: trainings, or passages, at once.
    """
    key = repr((model, size, source_digest(*_HASHED)))
    folder = CACHE / f"corpus-scaling-{sha256(key.encode()).hexdigest()[:12]}"

    make, limit = partial(hold_out, model, size), TimeLimit(None)
    study = Study(model, folder, ("corpus",), make, workers)
    held_out = study.prepare(size.kinds, limit)
    scorer = partial(ScaledScorer, model, study.homes["corpus"], size.prefix)
    measured = study.measure(held_out, scorer, limit)
    rows = [Row(kind, passage.name, bits) for kind, passage, bits in measured]
    return {
        "size": asdict(size),
        "learnt": study.learnt(held_out),
        "percent_of_base": by_factor(rows),
        "minus_unscaled": by_factor(rows, "1.0"),
        "by_corpus": {
            kind: by_factor([row for row in rows if row.corpus == kind]) for kind in held_out
        },
        "rows": [asdict(row) for row in rows],
    }


def by_factor(rows: list[Row], minus: str | None = None) -> dict[str, tuple[float, float, float]]:
    """Per cent of the base model's bits by factor, with 90 % intervals over documents.

    Args:
        rows: the passages.
        minus: the factor whose per cent are subtracted, passage by passage; None for none.
    """

    def percent(bits: Bits, factor: str | None) -> float:
        return 100 * bits[factor] / bits["0.0"] if factor is not None else 0.0

    return {
        str(factor): interval(
            [percent(row.bits, str(factor)) - percent(row.bits, minus) for row in rows],
            [row.document for row in rows],
        )
        for factor in FACTORS
    }


def _show(result: Mapping[str, Any], console: Console) -> None:
    table = Table("factor", "% of base", "minus unscaled", box=None, pad_edge=False)
    for factor, found in result["percent_of_base"].items():
        cells = (
            f"{mean:.1f} ({low:.1f} to {high:.1f})"
            for mean, low, high in (found, result["minus_unscaled"][factor])
        )
        table.add_row(factor, *cells)
    console.print(table, f"{len(result['rows'])} passages", highlight=False)


def _parser() -> ArgumentParser:
    parser = argument_parser(__doc__)
    parser.add_argument("--model", default="smollm2", help="the model (default: %(default)s)")
    parser.add_argument("--workers", type=int, default=2, help="processes (default: 2)")
    return parser


def main() -> None:
    """Measure, print, write the JSON."""
    options, facts = _parser().parse_args(), provenance()
    model = str(Path(model_folder(options.model)).absolute())
    result = measure(model, SIZE, options.workers)
    _show(result, Console(stderr=options.json))
    origin = {key: facts[key] for key in ("command", "commit")}
    parts = merged_parts(options.out, {Path(model).name: {**origin, **result}})
    numbers = {name: part["minus_unscaled"] for name, part in parts.items()}
    write_result(options, {**facts, "minus_unscaled": numbers, "parts": parts}, numbers)


if __name__ == "__main__":
    main()
