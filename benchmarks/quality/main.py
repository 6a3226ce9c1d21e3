"""Quality: bits per byte of held-out text of many domains, by strategy, setting, steps and seconds.

The prefix of every passage is the prompt; the suffix is scored (`benchmarks/quality/variants.py`)
after training on data from one corpus of all domains. The strategies of the main table are measured
on all passages; every other setting on a few of each domain, beside SIFT and nearest neighbours on
the same ones. Settings are the server's defaults, which were chosen on other packages and on
passages that are not reported. Measurements are kept in .cache, and an interrupted run continues;
they belong to the passages, corpus, model, embedder, and the code of selection and training.

    python -m benchmarks.quality.main [--budget small] [--domains Rust legal] [--per-domain 60]
    [--json] [--out FILE]
"""

from __future__ import annotations

import argparse
import hashlib
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from dataclasses import asdict, replace
from multiprocessing import get_context
from pathlib import Path

import torch
from rich.console import Console

from benchmarks.harness.command_line import argument_parser, progress, write_result
from benchmarks.harness.processes import openmp_threads
from benchmarks.harness.provenance import CACHE, ROOT, provenance, source_digest
from benchmarks.quality.domains import DOMAINS, fetch, read
from benchmarks.quality.measurements import Measurement, MeasurementFile
from benchmarks.quality.passages import Passage, PassageSet, make_set
from benchmarks.quality.plan import AXES, SIZES, STRATEGIES, Job, Size, jobs
from benchmarks.quality.tables import show, summary
from benchmarks.quality.variants import Variant, VariantRunner, open_selector
from selection import SelectorConfig
from serving.config import bundled_model

UNEARTH = ROOT / ".cache" / "tools" / "bin" / "unearth"
_HASHED_MODULES = ("variants.py", "centred.py", "full_training.py")


def main() -> None:
    """Measure what no former run has measured, print tables, write the JSON."""
    parser = argument_parser(__doc__)
    parser.add_argument(
        "--budget", choices=SIZES, default="full", help="small: ten minutes; full: hours"
    )
    parser.add_argument(
        "--domains",
        nargs="+",
        choices=[domain.name for domain in DOMAINS],
        help="domains of text (default: by budget)",
    )
    parser.add_argument(
        "--per-domain", type=int, help="passages of each domain (default: by budget)"
    )
    parser.add_argument(
        "--axes-per-domain",
        type=int,
        help="passages of each domain that measure settings (default: by budget)",
    )
    parser.add_argument("--model", default=bundled_model(), help="base model, hub id or folder")
    parser.add_argument("--embedder", default=SelectorConfig.embedder, help="embedding model")
    parser.add_argument(
        "--processes",
        type=int,
        default=1 if torch.cuda.is_available() else os.cpu_count() or 1,
        help="processes that measure (default: one per core, or one on a GPU)",
    )
    options, facts = parser.parse_args(), provenance()
    size = _size(options)
    available = size.held_out - size.chosen_on
    if not 1 <= size.measured <= available or not 0 <= size.axis_measured <= size.measured:
        parser.error(
            f"--per-domain must be from 1 to {available}, and --axes-per-domain at most that"
        )
    passage_set = make_passages(size, options.model, options.embedder)
    corpora: dict[str | None, str] = {None: passage_set.corpus}
    if size.axis_measured:
        centred_on = (options.embedder, options.model, passage_set.corpus)
        for embedder in {variant.embedder for variant in AXES["embedder"]}:
            assert embedder is not None
            corpora[embedder] = make_passages(size, options.model, embedder, centred_on).corpus
    measurements = measure(corpora, jobs(passage_set, size), options)
    result = {
        **facts,
        "model": Path(options.model).name,
        "embedder": options.embedder,
        "size": asdict(size),
        "corpus_sequences": passage_set.sequences,
        **summary(
            measurements,
            [variant.name for variant in STRATEGIES[: size.strategies]],
            AXES if size.axis_measured else {},
        ),
    }
    show(result, Console(stderr=options.json))
    last_line = {key: result[key] for key in ("percent_of_base", "correlation")}
    write_result(options, result, last_line, indent=None)


def _size(options: argparse.Namespace) -> Size:
    """The size of the budget, with the options that differ from it."""
    size = SIZES[options.budget]
    measured = size.measured if options.per_domain is None else options.per_domain
    return replace(
        size,
        domains=tuple(options.domains or size.domains),
        measured=measured,
        axis_measured=(
            size.axis_measured if options.axes_per_domain is None else options.axes_per_domain
        ),
        alone=min(size.alone, measured),
    )


def make_passages(
    size: Size, model: str, embedder: str, centred_on: tuple[str, str, str] | None = None
) -> PassageSet:
    """Download the domains, hold out passages, and ingest the rest.

    Args:
        size: amount of work.
        model: base model.
        embedder: embedder of the corpus.
        centred_on: as for `open_selector`.
    """
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
        open_selector(embedder, model, centred_on),
        max_bytes=size.corpus_bytes,
    )


def measure(
    corpora: Mapping[str | None, str], requested: Sequence[Job], options: argparse.Namespace
) -> list[Measurement]:
    """Measure, in processes of their own, what no former run has measured.

    Args:
        corpora: name of the corpus of each embedder; None is the run's.
        requested: all measurements of the run.
        options: `model`, `embedder` and `processes`.
    """
    key = repr(
        [corpora[None], options.model.removeprefix(str(ROOT)), options.embedder, _code_digest()]
    )
    digest = hashlib.sha256(key.encode()).hexdigest()[:16]
    file = MeasurementFile(CACHE / "quality" / f"{digest}.jsonl")
    for processes, alone in ((1, True), (options.processes, False)):
        missing = [
            replace(job, passages=passages)
            for job in requested
            if job.alone == alone
            and (
                passages := tuple(
                    p for p in job.passages if _key(job.variant, p) not in file.measurements
                )
            )
        ]
        if missing:
            _measure_all(missing, corpora, options, processes, file)
    progress("")
    keys = dict.fromkeys(_key(job.variant, p) for job in requested for p in job.passages)
    return [file.measurements[key] for key in keys]


def _measure_all(
    missing: Sequence[Job],
    corpora: Mapping[str | None, str],
    options: argparse.Namespace,
    processes: int,
    file: MeasurementFile,
) -> None:
    threads = max(1, (os.cpu_count() or 1) // options.processes)
    with (
        openmp_threads(threads),
        ProcessPoolExecutor(
            processes,
            get_context("spawn"),
            initializer=_start_runner,
            initargs=(options.model, options.embedder),
        ) as pool,
    ):
        pending: dict[Future[list[Measurement]], Job] = {
            pool.submit(_measure, job, dict(corpora)): job for job in missing
        }
        for count, future in enumerate(as_completed(pending), 1):
            job = pending[future]
            for passage, measurement in zip(job.passages, future.result(), strict=True):
                file.append(_key(job.variant, passage), measurement)
            progress(f"adapting: {count} of {len(missing)} jobs")


# Each process of the pool has one, which only a global variable can hold.
_runner: VariantRunner | None = None


def _start_runner(model: str, embedder: str) -> None:
    global _runner
    _runner = VariantRunner(model, embedder)


def _measure(job: Job, corpora: Mapping[str | None, str]) -> list[Measurement]:
    assert _runner is not None
    return _runner.measure(job.variant, job.passages, corpora, job.alone)


def _key(variant: Variant, passage: Passage) -> str:
    return hashlib.sha256(repr((variant, passage.key)).encode()).hexdigest()[:24]


def _code_digest() -> str:
    """Digest of the code that measurements depend on."""
    own = (f"benchmarks/quality/{name}" for name in _HASHED_MODULES)
    return source_digest("selection/**/*.py", "adapters/**/*.py", *own)


if __name__ == "__main__":
    main()
