"""The adapter of a corpus: what it gains and costs, and what becomes of it when documents go.

- quality: bits per byte of held-out text, in per cent of the base model's, and seconds at the time
  of the request: SIFT from scratch, the corpus's adapter, SIFT from there, with and without the
  chosen text in the prompt.
- instant: the first token beside a resident adapter of plain vLLM, and answers per second beside a
  PEFT loop per request.
- canary: whether anything still knows a document that was learnt and then removed or replaced.
- kills: the command, killed at random moments, and single flipped bits.
- increment: the cost of a hundredth more of documents, and of a training beside requests.

Quality and instant use the model of `--model`, and are kept for each model; the others use the
bundled one. A part that is given `--seconds` begins nothing after them, and its result says how
much was measured; without it, instant takes at most ten minutes with another model than the bundled
one, on two cores. Quality continues an interrupted run of the same code and size, and adds its
passages to those that the `--out` of such a run has, also from another machine; `--prepare` makes
and trains its corpora ahead. Parts that are not measured are kept from `--out`, if that exists.

    python benchmarks/corpus_adapter.py [--only quality] [--model smollm2] [--seconds 600] [--json]
    [--out benchmarks/results/corpus-adapter.json]
"""

from __future__ import annotations

import sys
import time
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Mapping, Sequence
from dataclasses import astuple, replace
from functools import partial
from hashlib import sha256
from operator import itemgetter
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from rich.console import Console

from benchmarks.corpus_adapters.arms import TRAININGS, Start, Training, arms_of
from benchmarks.corpus_adapters.canary import measure_canary
from benchmarks.corpus_adapters.corpora import (
    LARGE,
    MIXED,
    NANO_SIZE,
    QUICK_SIZE,
    REAL_SIZE,
    USED,
    HeldOut,
    Size,
    hold_out,
)
from benchmarks.corpus_adapters.former import FormerRun
from benchmarks.corpus_adapters.increment import measure_increment
from benchmarks.corpus_adapters.instant import instant_size, measure_instant
from benchmarks.corpus_adapters.kills import measure_kills
from benchmarks.corpus_adapters.learning import start_rate
from benchmarks.corpus_adapters.quality import open_runner
from benchmarks.corpus_adapters.result import merged, part_name, show, summary
from benchmarks.corpus_adapters.study import Study, passage_key
from benchmarks.corpus_adapters.summary import Row, quality_summary
from benchmarks.harness.command_line import argument_parser, progress, write_result
from benchmarks.harness.measures import TimeLimit
from benchmarks.harness.provenance import CACHE, provenance, source_digest
from benchmarks.harness.server import temporary_home
from selection.corpus.trained.plan import PART_FROM
from serving.models.catalogue import NANO, model_folder

PARTS = ("quality", "instant", "canary", "kills", "increment")
# Share of the time in which adapters of corpora are trained at most.
_TRAINING_SHARE = 0.5
# Further options of a corpus's training. One pass over LARGE takes more than an hour; by itself the
# command would try a second, and may take three.
_TRAINING_OPTIONS = {LARGE: ("--passes", "1")}
# The amount of work of a part: as a result needs it, and to see whether all works.
REQUESTS, KILLS, ROUNDS = 1000, 50, 5
QUICK_REQUESTS, QUICK_KILLS, QUICK_ROUNDS = 64, 4, 1
# What the passages' scores depend on.
_HASHED = (
    "selection/**/*.py",
    "adapters/**/*.py",
    *(f"benchmarks/corpus_adapters/{name}.py" for name in ("arms", "corpora", "quality")),
    "benchmarks/quality/passages.py",
)


def measure(part: str, options: Namespace, facts: Mapping[str, Any]) -> dict[str, Any] | None:
    """Measure a part; None if its time was over before anything was measured.

    Args:
        part: the part.
        options: of the command.
        facts: the run's `provenance`.
    """
    if part == "quality":
        return _quality(options, {key: facts[key] for key in ("command", "commit", "machine")})
    if part == "instant":
        return _instant(options)
    rounds, seed, limit = options.rounds, options.seed, TimeLimit(options.seconds)
    with temporary_home() as home:
        match part:
            case "canary":
                return measure_canary(home, options.requests, seed, limit)
            case "kills":
                return measure_kills(home, options.kills, seed, limit)
            case _:
                return measure_increment(home, rounds, seed, limit)


def _instant(options: Namespace) -> dict[str, Any]:
    base = str(Path(model_folder(options.model)).absolute())
    size = instant_size(base, options.quick)
    size = replace(size, seconds=options.seconds or size.seconds)
    with temporary_home() as home:
        return measure_instant(home, base, size, options.rounds, options.seed)


def _quality(options: Namespace, origin: Mapping[str, Any]) -> dict[str, Any] | None:
    model, size = str(Path(model_folder(options.model)).absolute()), _size(options)
    sources = source_digest(*_HASHED)
    name = part_name("quality", options.model, options.corpora or ())
    former = FormerRun(options.out, name, Path(model).name, astuple(size), sources)
    key = repr((model, astuple(size), sources))
    folder = CACHE / f"corpus-adapter-{sha256(key.encode()).hexdigest()[:12]}"
    limit, trainings = TimeLimit(options.seconds), TRAININGS[size.trainings]

    starts = {training.start for training in trainings} - {"fresh"}
    study = Study(
        model,
        folder,
        starts,
        partial(hold_out, model, size),
        options.workers,
        options=_TRAINING_OPTIONS,
    )
    learning = limit if options.prepare else TimeLimit(_TRAINING_SHARE * limit.left)
    held_out = study.prepare(size.kinds, learning)
    if options.prepare:
        return None
    former.add_to(study, itemgetter("scores"))
    runner = partial(open_runner, model, study.homes, trainings, size.prefix)
    new = (
        vars(Row(kind, passage.name, scores, passage_key(kind, passage)))
        for kind, passage, scores in study.measure(held_out, runner, limit)
    )
    rows = [Row(**row) for row in former.with_rows(new)]
    if not rows:
        return None
    return {
        "size": vars(size),
        "workers": options.workers,
        "start_rate": start_rate(model),
        **former.fields(origin, len(rows), ("learnt", study.learnt(held_out))),
        **quality_summary(rows, arms_of(trainings), _default_start(held_out, trainings)),
    }


def _default_start(held_out: Mapping[str, HeldOut], trainings: Sequence[Training]) -> Start:
    """The adapter that corpora of this size have by default, of those that are measured."""
    is_divided = all(each.sequences > PART_FROM for each in held_out.values())
    measured = {training.start for training in trainings}
    return "parts" if is_divided and "parts" in measured else "corpus"


def _size(options: Namespace) -> Size:
    size = NANO_SIZE if Path(options.model).name == NANO else REAL_SIZE
    if options.quick:
        size = replace(QUICK_SIZE, prefix=size.prefix, suffix=size.suffix)
    return replace(
        size,
        kinds=tuple(options.corpora or size.kinds),
        trainings=options.trainings or size.trainings,
        passages=options.passages or size.passages,
        corpus_bytes=options.corpus_bytes or size.corpus_bytes,
    )


def _parser() -> ArgumentParser:
    parser = argument_parser(__doc__)
    parser.add_argument(
        "--only", nargs="+", choices=PARTS, default=PARTS, help="parts to measure (default: all)"
    )
    parser.add_argument(
        "--seconds", type=float, help="limit of each part (default: none, for instant by the model)"
    )
    parser.add_argument("--quick", action="store_true", help="little work, to see whether it works")
    parser.add_argument("--seed", type=int, default=0, help="random seed (default: 0)")
    parser.add_argument(
        "--model", default=NANO, help="the model of quality and instant (default: %(default)s)"
    )
    quality = parser.add_argument_group("quality")
    quality.add_argument("--corpora", nargs="+", choices=(*USED, MIXED, LARGE), help="which")
    quality.add_argument("--passages", type=int, help="passages of each corpus")
    quality.add_argument("--corpus-bytes", type=int, help="text of the corpus of a domain")
    quality.add_argument("--trainings", choices=list(TRAININGS), help="which are compared")
    quality.add_argument("--workers", type=int, default=2, help="processes (default: 2)")
    quality.add_argument("--prepare", action="store_true", help="make and train the corpora only")
    others = parser.add_argument_group("other parts")
    add: Callable[..., Any] = others.add_argument
    add("--requests", type=int, help=f"of canary, after the removals (default: {REQUESTS})")
    add("--kills", type=int, help=f"number (default: {KILLS})")
    add("--rounds", type=int, help=f"of instant and increment (default: {ROUNDS})")
    return parser


def _parsed() -> Namespace:
    options = _parser().parse_args()
    quick = options.quick
    options.requests = options.requests or (QUICK_REQUESTS if quick else REQUESTS)
    options.kills = options.kills or (QUICK_KILLS if quick else KILLS)
    options.rounds = options.rounds or (QUICK_ROUNDS if quick else ROUNDS)
    return options


def main() -> None:
    """Measure, print, write the JSON."""
    options, facts = _parsed(), provenance()
    parts: dict[str, Mapping[str, Any]] = {}
    for part in options.only:
        started = time.monotonic()
        measured = measure(part, options, facts)
        progress("")
        if measured is None:
            print(f"{part}: nothing was measured", file=sys.stderr)
            continue
        origin = {key: facts[key] for key in ("command", "commit")}
        seconds = round(time.monotonic() - started, 1)
        name = part_name(part, options.model, options.corpora or ())
        parts[name] = {**origin, "quick": options.quick, "seconds": seconds, **measured}
    parts = merged(options.out, parts)
    numbers = summary(parts)
    show(numbers, parts, Console(stderr=options.json))
    write_result(options, {**facts, **numbers, "parts": parts}, numbers)


if __name__ == "__main__":
    main()
