"""Looks: the loss of prompt and suffix whenever a server would look at the prompt, to judge rules
for stopping.

The passages, the corpus and the choosing are those of `benchmarks/quality/main.py`; nothing but SIFT is
measured. The first passages of each domain, which the other benchmarks only choose defaults on and
never report, choose each rule's parameter here; the others report what the rule then does. What is
measured is kept in .cache, line by line, and a run that was broken off goes on where it was.

    python -m benchmarks.quality.probe_curves [--per-domain 6] [--json] [--out FILE]
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from adapters.early_stopping import EarlyStopping
from benchmarks.harness.command_line import progress
from benchmarks.harness.provenance import CACHE, provenance
from benchmarks.quality.main import SIZES, line_of, make_ground, remembered
from benchmarks.quality.passages import Passage
from benchmarks.quality.stopping_rules import judged, show
from benchmarks.quality.variants import STEPS, Laboratory, Row, Variant, record
from selection import SelectorConfig
from serving.config import bundled_model

AT_ONCE = 3  # passages that are adapted together


def main() -> None:
    """Measure what is not measured yet, judge the rules, print a table, write the JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument(
        "--per-domain", type=int, default=6, help="passages of each domain that report"
    )
    parser.add_argument(
        "--json", action="store_true", help="print one JSON object as the last line"
    )
    parser.add_argument("--out", type=Path, help="write the full result here")
    options, facts = parser.parse_args(), provenance()
    choosing, reporting = measure(options.per_domain)
    result = {
        **facts,
        "model": Path(bundled_model()).name,
        "embedder": SelectorConfig.embedder,
        **judged(choosing, reporting),
        "choosing": [record(row) for row in choosing],
        "reporting": [record(row) for row in reporting],
    }
    show(result, Console(stderr=options.json))
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(result) + "\n")
    if options.json:
        print(json.dumps({key: result[key] for key in ("auto", "rules")}))


def measure(per_domain: int) -> tuple[list[Row], list[Row]]:
    """Rows of the passages that choose and of those that report."""
    size = replace(SIZES["full"], measured=per_domain)
    ground = make_ground(size, bundled_model(), SelectorConfig.embedder)
    choosing = some(ground.passages, 0, size.chosen_on)
    reporting = some(ground.passages, size.chosen_on, size.chosen_on + per_domain)
    file = CACHE / "looks" / f"{ground.corpus}.jsonl"
    file.parent.mkdir(parents=True, exist_ok=True)
    known = remembered(file)
    missing = [passage for passage in (*choosing, *reporting) if passage.key not in known]
    if missing:
        laboratory = Laboratory(bundled_model(), SelectorConfig.embedder, looks())
        with file.open("a") as log:
            log.write("\n")  # after a line that was cut short
            for start in range(0, len(missing), AT_ONCE):
                progress(f"adapting: passage {start + 1} of {len(missing)}")
                for row in laboratory.measure(
                    Variant("SIFT"), missing[start : start + AT_ONCE], {None: ground.corpus}
                ):
                    known[row.passage] = row
                    log.write(line_of(row.passage, row))
                log.flush()
        progress("")
    return [_at_looks(known[each.key]) for each in choosing], [
        _at_looks(known[each.key]) for each in reporting
    ]


def _at_looks(row: Row) -> Row:
    """Without what was measured in between."""
    at = [str(n) for n in looks()]
    return replace(row, prompt={n: row.prompt[n] for n in at}, bits={n: row.bits[n] for n in at})


def looks() -> list[int]:
    """After how many steps the prompt is looked at, where nothing stops the training."""
    stopping = EarlyStopping(gain=1.0)
    for used in range(STEPS + 1):
        if stopping.probe_due(used) or used == STEPS:
            stopping.record(used, used, 1.0)
    return [each.sequences for each in stopping.evaluations]


def some(passages: Sequence[Passage], start: int, end: int) -> list[Passage]:
    """Of each domain those from start to end, one of each domain after the other, so that a part
    has some of all.
    """
    by_group: dict[str, list[Passage]] = {}
    for passage in passages:
        by_group.setdefault(passage.group, []).append(passage)
    return [own[n] for n in range(start, end) for own in by_group.values() if n < len(own)]


if __name__ == "__main__":
    main()
