"""Quality: bits per byte of held-out text of many domains, by strategy, by setting, by steps and by
seconds.

Of every passage the prefix is the prompt and the suffix is scored (`benchmarks/quality/variants.py`), after
data of one corpus of all domains was chosen and learnt. The strategies of the main table are
measured on all passages; every other setting on a few of each domain, beside SIFT and nearest
neighbours on the same ones. Settings are the server's defaults, which were chosen on other packages
and on a few passages that are not reported (README.md). What is measured is kept in .cache, line by
line, and a run that was broken off goes on where it was; it belongs to passages, corpus, model,
embedder and the code of selection and training.

    python -m benchmarks.quality.main [--budget small] [--domains Rust legal] [--per-domain 60] [--json]
    [--out FILE]
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, replace
from multiprocessing import get_context
from pathlib import Path

import torch
from rich.console import Console

from benchmarks.harness.command_line import progress
from benchmarks.harness.provenance import CACHE, ROOT, provenance
from benchmarks.quality.domains import DOMAINS, fetch, read
from benchmarks.quality.passages import Passage, PassageSet, make_set
from benchmarks.quality.tables import show, summary
from benchmarks.quality.variants import CENTRED, Laboratory, Row, Variant, open_selector, record
from selection import SelectorConfig
from serving.config import bundled_model

_DECIDING = ("variants.py", "centred.py", "full_training.py")
AT_ONCE = 2  # passages of each domain
UNEARTH = ROOT / ".cache" / "tools" / "bin" / "unearth"
STRATEGIES = (
    Variant("SIFT"),
    Variant("NN", "nn"),
    Variant("random", "random"),
    Variant("NN-F", "nn-f"),
    Variant("US", "us"),
    Variant("HullFT", "hull", plan="reuse"),
    Variant("SIFT in context", in_context=True),
    Variant("NN in context", "nn", in_context=True),
)
AXES = {
    "lambda'": tuple(
        Variant(f"lambda' {value:g}", regularisation=value) for value in (0.01, 0.1, 1.0, 10.0)
    ),
    "candidates": (
        Variant("K = 50", candidates=50),
        Variant("K = 1000", candidates=1000),
        Variant("K = all", candidates=None),
    ),
    "corpus": tuple(
        Variant(f"{strategy.upper()}, {share} % of the corpus", strategy, share=share)
        for share in (3, 33)
        for strategy in ("sift", "nn")
    ),
    "copies": tuple(
        Variant(f"{strategy.upper()}, every sequence {copies} times", strategy, copies=copies)
        for copies in (2, 5)
        for strategy in ("sift", "nn")
    ),
    "near-duplicates left in": (
        Variant("SIFT, all documents", near=True),
        Variant("NN, all documents", "nn", near=True),
    ),
    "the paper's own way": (
        Variant("SIFT, whole passage", whole=True),
        Variant("NN, whole passage", "nn", whole=True),
    ),
    "order": (
        Variant("SIFT reversed", order="reversed"),
        Variant("NN reversed", "nn", order="reversed"),
    ),
    "plan": (Variant("batched", plan="batched"), Variant("reuse", plan="reuse")),
    "learning rate": tuple(
        Variant(f"rate {value:g}", learning_rate=value) for value in (1e-4, 3e-4, 1e-3, 2e-3)
    ),
    "scale": tuple(
        Variant(f"scale {scale:g}, rate {rate:g}", scale=scale, learning_rate=rate)
        for scale, rate in ((1.0, 3e-3), (4.0, 2e-3), (64.0, 1.5e-4))
    ),
    "rank": (Variant("rank 4", rank=4), Variant("rank 64", rank=64)),
    "full fine-tuning": tuple(
        Variant(f"all weights, rate {value:g}", full=True, learning_rate=value)
        for value in (1e-4, 3e-4, 1e-3)
    ),
    "embedder": tuple(
        Variant(f"{strategy.upper()}, {name}", strategy, embedder=embedder)
        for embedder, name in (
            ("base-model", "hidden states of the base model"),
            (CENTRED, "centred"),
        )
        for strategy in ("sift", "nn")
    ),
    "last layer": tuple(
        Variant(f"last layer, rate {value:g}", targets=("lm_head",), learning_rate=value)
        for value in (6e-4, 2e-3)
    ),
}


@dataclass(frozen=True)
class Size:
    """Of a run.

    Attributes:
        domains: names of domains.
        strategies: how many of STRATEGIES, the first.
        held_out: documents of each domain.
        chosen_on: the first of these, which defaults were chosen on; never reported.
        measured: of the others, those of the main table.
        axis_measured: of these, those on which the axes are measured.
        alone: of these, those that are measured with nothing else computing.
        corpus_bytes: of each domain.
    """

    domains: tuple[str, ...]
    strategies: int
    held_out: int
    chosen_on: int
    measured: int
    axis_measured: int
    alone: int
    corpus_bytes: int


SIZES = {
    "small": Size(("Python", "Rust", "reference"), 3, 9, 3, 6, 0, 1, 500_000),
    "full": Size(
        tuple(domain.name for domain in DOMAINS), len(STRATEGIES), 60, 3, 57, 6, 1, 1_000_000
    ),
}


@dataclass(frozen=True)
class Job:
    """A variant and the passages that it is measured on at once; or one, alone."""

    variant: Variant
    passages: tuple[Passage, ...]
    alone: bool = False


def main() -> None:
    """Measure what is not measured yet, print tables, write the JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--budget", choices=SIZES, default="full")
    parser.add_argument(
        "--domains",
        nargs="+",
        choices=[domain.name for domain in DOMAINS],
        help="default: the budget's",
    )
    parser.add_argument(
        "--per-domain", type=int, help="held-out documents of each that are measured"
    )
    parser.add_argument(
        "--axes-per-domain", type=int, help="of them, those on which settings are compared"
    )
    parser.add_argument("--model", default=bundled_model(), help="base model, hub id or folder")
    parser.add_argument("--embedder", default=SelectorConfig.embedder)
    parser.add_argument(
        "--processes", type=int, default=1 if torch.cuda.is_available() else os.cpu_count() or 1
    )
    parser.add_argument(
        "--json", action="store_true", help="print one JSON object as the last line"
    )
    parser.add_argument("--out", type=Path, help="write the full result here")
    options, facts = parser.parse_args(), provenance()
    size = SIZES[options.budget]
    size = replace(
        size,
        domains=tuple(options.domains or size.domains),
        measured=size.measured if options.per_domain is None else options.per_domain,
        axis_measured=size.axis_measured
        if options.axes_per_domain is None
        else options.axes_per_domain,
        alone=min(size.alone, size.measured if options.per_domain is None else options.per_domain),
    )
    left = size.held_out - size.chosen_on
    if not 1 <= size.measured <= left or not 0 <= size.axis_measured <= size.measured:
        parser.error(
            f"of {left} held-out documents 1 to all are measured, and settings on some of these"
        )
    ground = make_ground(size, options.model, options.embedder)
    corpora: dict[str | None, str] = {None: ground.corpus}
    if size.axis_measured:
        of = (options.embedder, options.model, ground.corpus)
        for embedder in {variant.embedder for variant in AXES["embedder"]}:
            assert embedder is not None
            corpora[embedder] = make_ground(size, options.model, embedder, of).corpus
    rows = measure(corpora, jobs(ground, size), options)
    result = {
        **facts,
        "model": Path(options.model).name,
        "embedder": options.embedder,
        "size": asdict(size),
        "corpus_sequences": ground.sequences,
        **summary(
            rows,
            [variant.name for variant in STRATEGIES[: size.strategies]],
            AXES if size.axis_measured else {},
        ),
    }
    show(result, Console(stderr=options.json))
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(result) + "\n")
    if options.json:
        print(json.dumps({key: result[key] for key in ("percent_of_base", "correlation")}))


def make_ground(
    size: Size, model: str, embedder: str, of: tuple[str, str, str] | None = None
) -> PassageSet:
    """Download, hold out, embed; `of` as of `open_selector`."""
    domains = [domain for domain in DOMAINS if domain.name in size.domains]
    archives = fetch(
        sorted({name for domain in domains for name in domain.files}),
        CACHE / "distributions",
        UNEARTH,
    )
    return make_set(
        "quality",
        {domain.name: read(domain, archives) for domain in domains},
        size.held_out,
        model,
        open_selector(embedder, model, of),
        max_bytes=size.corpus_bytes,
    )


def jobs(ground: PassageSet, size: Size) -> list[Job]:
    """What is to be measured: some of each domain in turn, so that a run that is broken off has
    some of all.

    The first are measured alone.
    """
    by_group: dict[str, list[Passage]] = {}
    for passage in ground.passages:
        by_group.setdefault(passage.group, []).append(passage)

    def some(start: int, end: int) -> tuple[Passage, ...]:
        return tuple(
            p for passages in by_group.values() for p in passages[size.chosen_on :][start:end]
        )

    strategies = STRATEGIES[: size.strategies]
    found = [
        Job(variant, (passage,), alone=True)
        for passage in some(0, size.alone)
        for variant in strategies
        if not variant.in_context
    ]
    for start in range(0, size.measured, AT_ONCE):
        found += [
            Job(variant, some(start, min(start + AT_ONCE, size.measured))) for variant in strategies
        ]
        if start < size.axis_measured:
            few = some(start, min(start + AT_ONCE, size.axis_measured))
            found += [Job(variant, few) for axis in AXES.values() for variant in axis]
    return found


def measure(
    corpora: Mapping[str | None, str], wanted: Sequence[Job], options: argparse.Namespace
) -> list[Row]:
    """Rows of what is wanted, measured in processes of their own where they are not known yet."""
    key = repr([corpora[None], options.model.removeprefix(str(ROOT)), options.embedder, _code()])
    file = CACHE / "quality" / f"{hashlib.sha256(key.encode()).hexdigest()[:16]}.jsonl"
    file.parent.mkdir(parents=True, exist_ok=True)
    known = remembered(file)
    for processes, alone in ((1, True), (options.processes, False)):
        missing = [
            replace(job, passages=left)
            for job in wanted
            if job.alone == alone
            and (left := tuple(p for p in job.passages if _key(job.variant, p) not in known))
        ]
        if missing:
            known |= _measure_all(missing, corpora, options, processes, file)
    progress("")
    return list(
        {
            key: known[key]
            for job in wanted
            for key in (_key(job.variant, p) for p in job.passages)
        }.values()
    )


def _measure_all(
    jobs: Sequence[Job],
    corpora: Mapping[str | None, str],
    options: argparse.Namespace,
    processes: int,
    file: Path,
) -> dict[str, Row]:
    # Of the processes to come.
    os.environ["OMP_NUM_THREADS"] = str(max(1, (os.cpu_count() or 1) // options.processes))
    known = {}
    with (
        file.open("a") as log,
        ProcessPoolExecutor(
            processes,
            get_context("spawn"),
            initializer=_begin,
            initargs=(options.model, options.embedder),
        ) as pool,
    ):
        log.write("\n")  # after a line that was cut short
        pending: dict[Future[list[Row]], Job] = {
            pool.submit(_measure, job, dict(corpora)): job for job in jobs
        }
        for done, future in enumerate(as_completed(pending), 1):
            job = pending[future]
            for passage, row in zip(job.passages, future.result(), strict=True):
                known[_key(job.variant, passage)] = row
                log.write(line_of(_key(job.variant, passage), row))
            log.flush()
            progress(f"adapting: {done} of {len(jobs)} jobs")
    return known


def line_of(key: str, row: Row) -> str:
    """A measured row, to be remembered."""
    return json.dumps({"key": key, **record(row)}) + "\n"


def remembered(file: Path) -> dict[str, Row]:
    """What earlier runs have measured, by key; a line that a kill cut short is nothing."""
    known = {}
    for line in file.read_text().splitlines() if file.exists() else ():
        try:
            said = json.loads(line)
        except ValueError:
            continue
        key = said.pop("key")
        known[key] = Row(**said)
    return known


_laboratory: Laboratory | None = None  # of a process that measures


def _begin(model: str, embedder: str) -> None:
    global _laboratory  # what a pool's initializer makes has no other place
    _laboratory = Laboratory(model, embedder)


def _measure(job: Job, corpora: Mapping[str | None, str]) -> list[Row]:
    assert _laboratory is not None
    return _laboratory.measure(job.variant, job.passages, corpora, job.alone)


def _key(variant: Variant, passage: Passage) -> str:
    return hashlib.sha256(repr((variant, passage.key)).encode()).hexdigest()[:24]


def _code() -> str:
    """Digest of what decides a result."""
    files: Iterable[Path] = sorted(
        [
            *ROOT.glob("selection/*.py"),
            *ROOT.glob("adapters/*.py"),
            *(ROOT / "benchmarks" / "quality" / name for name in _DECIDING),
        ]
    )
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


if __name__ == "__main__":
    main()
