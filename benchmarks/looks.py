"""Looks: the loss of prompt and suffix after every single step, which rules for stopping are judged on.

The passages, the corpus and the choosing are those of `benchmarks/quality.py`; nothing but SIFT is measured. The first
passages of each domain, which the other benchmarks only choose defaults on and never report, choose each rule's
parameter here; the others report what the rule then does. What is measured is kept in .cache, line by line, and a run
that was broken off goes on where it was.

    python benchmarks/looks.py [--per-domain 6] [--json] [--out FILE]
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from benchmarks.passages import CACHE, circumstances, progress
from benchmarks.quality import SIZES, line_of, make_ground, remembered
from benchmarks.stopping import judged, show
from benchmarks.variants import STEPS, Laboratory, Row, Variant, record
from selection import SelectorConfig
from serving.config import bundled_model

AT_ONCE = 3  # passages that are adapted together


def main() -> None:
    """Measure what is not measured yet, judge the rules, print a table, write the JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--per-domain", type=int, default=6, help="passages of each domain that report")
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    parser.add_argument("--out", type=Path, help="write the full result here")
    options, facts = parser.parse_args(), circumstances()
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
    by_group: dict[str, list[str]] = {}
    for passage in ground.passages:
        by_group.setdefault(passage.group, []).append(passage.key)
    chosen_on = {key for keys in by_group.values() for key in keys[: size.chosen_on]}
    reported = {key for keys in by_group.values() for key in keys[size.chosen_on :][:per_domain]}
    file = CACHE / "looks" / f"{ground.corpus}.jsonl"
    file.parent.mkdir(parents=True, exist_ok=True)
    known = remembered(file)
    missing = [p for p in ground.passages if p.key in chosen_on | reported and p.key not in known]
    laboratory = Laboratory(bundled_model(), SelectorConfig.embedder, range(STEPS + 1)) if missing else None
    with file.open("a") as log:
        log.write("\n")  # after a line that was cut short
        for start in range(0, len(missing), AT_ONCE):
            progress(f"adapting: passage {start + 1} of {len(missing)}")
            assert laboratory is not None
            for row in laboratory.measure(Variant("SIFT"), missing[start : start + AT_ONCE], {None: ground.corpus}):
                known[row.passage] = row
                log.write(line_of(row.passage, row))
            log.flush()
    progress("")
    ordered = [passage.key for passage in ground.passages if passage.key in known]
    return [known[key] for key in ordered if key in chosen_on], [known[key] for key in ordered if key in reported]


if __name__ == "__main__":
    main()
