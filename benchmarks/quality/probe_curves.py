"""Probe curves: loss of prompt and suffix at each probe, to compare stopping rules.

Passages, corpus and selection are those of `benchmarks/quality/main.py`; only SIFT is measured. The
first passages of each domain, which other benchmarks choose defaults on and never report, choose
each rule's parameter here; the others report what the rule then does. Measurements are kept in
.cache, and an interrupted run continues.

    python -m benchmarks.quality.probe_curves [--per-domain 6] [--json] [--out FILE]
    python -m benchmarks.quality.probe_curves --measured benchmarks/results/stopping.json --out FILE
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from adapters.early_stopping import EarlyStopping
from benchmarks.harness.command_line import argument_parser, progress, write_result
from benchmarks.harness.provenance import CACHE, provenance
from benchmarks.quality.main import make_passages
from benchmarks.quality.measurements import Measurement, MeasurementFile, record
from benchmarks.quality.passages import Passage
from benchmarks.quality.plan import SIZES
from benchmarks.quality.stopping_rules import evaluate, show
from benchmarks.quality.variants import STEPS, Variant, VariantRunner
from selection import SelectorConfig
from serving.config import bundled_model

BATCH_PASSAGES = 3


def main() -> None:
    """Measure what no former run has measured, compare the rules, print a table, write the JSON."""
    parser = argument_parser(__doc__)
    parser.add_argument(
        "--per-domain",
        type=int,
        default=6,
        help="reported passages of each domain (default: %(default)s)",
    )
    parser.add_argument(
        "--measured", type=Path, help="earlier result, whose measurements are evaluated again"
    )
    options, facts = parser.parse_args(), provenance()
    if options.measured is None:
        choosing, reporting = measure(options.per_domain)
        facts |= {"model": Path(bundled_model()).name, "embedder": SelectorConfig.embedder}
    else:
        earlier = json.loads(options.measured.read_text())
        choosing, reporting = (
            [Measurement(**fields) for fields in earlier[part]]
            for part in ("choosing", "reporting")
        )
        evaluated = {"evaluated": {key: facts[key] for key in ("command", "commit")}}
        facts = {key: earlier[key] for key in (*facts, "model", "embedder")} | evaluated
    result = {
        **facts,
        **evaluate(choosing, reporting),
        "choosing": [record(row) for row in choosing],
        "reporting": [record(row) for row in reporting],
    }
    show(result, Console(stderr=options.json))
    last_line = {key: result[key] for key in ("auto", "rules")}
    write_result(options, result, last_line, indent=None)


def measure(per_domain: int) -> tuple[list[Measurement], list[Measurement]]:
    """Measurements of the passages that choose parameters, and of those that are reported."""
    size = replace(SIZES["full"], measured=per_domain)
    passage_set = make_passages(size, bundled_model(), SelectorConfig.embedder)
    choosing = slice_of_each(passage_set.passages, 0, size.chosen_on)
    reporting = slice_of_each(passage_set.passages, size.chosen_on, size.chosen_on + per_domain)
    file = MeasurementFile(CACHE / "probe-curves" / f"{passage_set.corpus}.jsonl")
    missing = [p for p in (*choosing, *reporting) if p.key not in file.measurements]
    if missing:
        runner = VariantRunner(bundled_model(), SelectorConfig.embedder, probe_steps())
        corpora: dict[str | None, str] = {None: passage_set.corpus}
        for start in range(0, len(missing), BATCH_PASSAGES):
            progress(f"adapting: passage {start + 1} of {len(missing)}")
            batch = missing[start : start + BATCH_PASSAGES]
            for measurement in runner.measure(Variant("SIFT"), batch, corpora):
                file.append(measurement.passage, measurement)
        progress("")
    return (
        [_at_probes(file.measurements[p.key]) for p in choosing],
        [_at_probes(file.measurements[p.key]) for p in reporting],
    )


def _at_probes(row: Measurement) -> Measurement:
    """A measurement without the steps between probes."""
    steps = [str(n) for n in probe_steps()]
    return replace(
        row, prompt={n: row.prompt[n] for n in steps}, bits={n: row.bits[n] for n in steps}
    )


def probe_steps() -> list[int]:
    """Numbers of steps at which the prompt is probed, where nothing stops the training."""
    stopping = EarlyStopping(gain=1.0)
    for used in range(STEPS + 1):
        if stopping.probe_due(used) or used == STEPS:
            stopping.record(used, used, 1.0)
    return [each.sequences for each in stopping.evaluations]


def slice_of_each(passages: Sequence[Passage], start: int, end: int) -> list[Passage]:
    """Passages `start` to `end` of each domain, alternating between domains."""
    by_group: dict[str, list[Passage]] = {}
    for passage in passages:
        by_group.setdefault(passage.group, []).append(passage)
    return [group[n] for n in range(start, end) for group in by_group.values() if n < len(group)]


if __name__ == "__main__":
    main()
