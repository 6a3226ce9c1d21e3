"""The defaults of `auto`: what answers without a step, and which text is shown, by rule.

For passages of text that no benchmark reports: bits per byte of the suffix and loss of the
prompt's end, with the base model and with the adapter of the corpus, each alone and with two, four
and eight sequences in the prompt, chosen by SIFT or the nearest. From these follows what each rule
would have answered with. Nothing is trained for a request.

An interrupted run of the same code goes on. Every training and every passage takes one core.

    python -m benchmarks.auto_defaults.main [--model smollm2] [--seconds 3600] [--workers 2]
    [--prepare] [--json] [--out benchmarks/results/auto-defaults.json]
"""

from __future__ import annotations

import json
import sys
from argparse import ArgumentParser
from collections.abc import Mapping
from dataclasses import asdict, astuple, replace
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.auto_defaults.domains import DOMAINS, near_copies_of
from benchmarks.auto_defaults.runner import WaysRunner
from benchmarks.auto_defaults.summary import summary
from benchmarks.auto_defaults.ways import Row
from benchmarks.corpus_adapters.corpora import HeldOut
from benchmarks.corpus_adapters.study import Study
from benchmarks.harness.command_line import argument_parser, progress, write_result
from benchmarks.harness.measures import TimeLimit
from benchmarks.harness.provenance import CACHE, ROOT, provenance, source_digest
from benchmarks.proof_of_gain.cases import Case, Size, hold_out
from benchmarks.proof_of_gain.first_token import FirstToken
from benchmarks.proof_of_gain.splits import verbatim
from benchmarks.proof_of_gain.young_text import DOMAINS as REPORTED
from serving.models.catalogue import model_folder

SIZE = Size(
    domains=tuple(domain.name for domain in DOMAINS),
    trainings="",
    passages=8,
    compared=0,
    per_document=1,
    prefix=384,
    suffix=96,
    corpus_bytes=40_000,
    compared_bytes=None,
    kernel_domains=(),
)
# Has the costs of the engine, which depend on the model and on no text.
_PROOF = ROOT / "benchmarks" / "results" / "proof.json"
# What the measurements depend on.
_SOURCES = (
    "selection/**/*.py",
    "adapters/**/*.py",
    "serving/adaptation/*.py",
    "serving/corpus_training/*.py",
    "serving/budget.py",
    "benchmarks/auto_defaults/domains.*",
    *(f"benchmarks/auto_defaults/{name}.py" for name in ("runner", "ways")),
    *(f"benchmarks/proof_of_gain/{name}.py" for name in ("auto", "cases", "copies", "splits")),
    "benchmarks/quality/passages.py",
)


def _overlap(held_out: Mapping[str, HeldOut]) -> dict[str, Any]:
    """What the text has in common with that of the proof."""
    reported = [document for domain in REPORTED for document in domain.documents()]
    passages = [passage for each in held_out.values() for passage in each.passages]
    return {
        "suffixes_in_reported": verbatim(passages, reported),
        "near_copies_of_reported": near_copies_of(
            (document for domain in DOMAINS for document in domain.documents()), reported
        ),
    }


def _first_token(model: str) -> dict[str, Any]:
    """The costs of the engine, and where they were measured; nothing for another model."""
    proof = json.loads(_PROOF.read_text())
    costs = proof["parts"]["first-token"]
    if proof["model"] != Path(model).name:
        return {"fixed": 0.0, "per_token": 0.0, "load": 0.0}
    return {key: costs[key] for key in ("fixed", "per_token", "load", "commit")}


def _show(result: Mapping[str, Any], console: Console) -> None:
    """Print ways and rules."""
    table = Table("", "% of base", box=None, pad_edge=False)
    for name, (middle, low, high) in result["ways"].items():
        table.add_row(name, f"{middle:.1f} ({low:.1f} to {high:.1f})")
    console.print(table)
    table = Table("SIFT minus nearest", "points", box=None, pad_edge=False)
    for name, (middle, low, high) in result["sift_minus_nearest"].items():
        table.add_row(name, f"{middle:+.1f} ({low:+.1f} to {high:+.1f})")
    console.print(table)
    for part in ("rules_with_adapter", "rules_without_adapter"):
        table = Table(part, "% of base", "minus now", "worse", "s", "", box=None, pad_edge=False)
        for name, rule in result[part].items():
            middle, low, high = rule["percent_of_base"]
            difference, least, most = rule["minus_now"]
            table.add_row(
                name,
                f"{middle:.1f} ({low:.1f} to {high:.1f})",
                f"{difference:+.2f} ({least:+.2f} to {most:+.2f})",
                str(rule["worse_than_base"]),
                f"{rule['first_token']:.1f}",
                json.dumps(rule["answers"]),
            )
        console.print(table)


def _parser() -> ArgumentParser:
    parser = argument_parser(__doc__)
    add = parser.add_argument
    add("--model", default="smollm2", help="the model (default: %(default)s)")
    add("--seconds", type=float, help="limit of the run")
    add(
        "--passages",
        type=int,
        default=SIZE.passages,
        help="per domain (default: %(default)s)",
    )
    add("--workers", type=int, default=1, help="processes, one core each (default: 1)")
    add("--prepare", action="store_true", help="make and train the corpora only")
    return parser


def main() -> None:
    """Measure, print, write the JSON."""
    options, source = _parser().parse_args(), provenance()
    model = str(Path(model_folder(options.model)).absolute())
    limit, size = TimeLimit(options.seconds), replace(SIZE, passages=options.passages)
    cases = {domain.name: Case(domain) for domain in DOMAINS}
    key = sha256(repr((model, astuple(size), source_digest(*_SOURCES))).encode()).hexdigest()
    study = Study(
        model,
        CACHE / f"auto-defaults-{key[:12]}",
        ("corpus",),
        lambda name, home: hold_out(cases[name], size, model, home),
        workers=options.workers,
        threads=1,
    )
    # The tables may be made again later.
    measured_at = study.journal.once("commit", lambda: source["commit"])
    held_out = study.prepare(cases, limit)
    if options.prepare:
        return
    runner = partial(WaysRunner, model, study.homes["corpus"], size.prefix)
    measured = study.measure(held_out, runner, limit)
    if not measured:
        sys.exit("nothing was measured: run the same command again, it goes on")
    rows = [{"domain": name, "document": of.name, **found} for name, of, found in measured]
    costs = _first_token(model)
    first_token = FirstToken(costs["fixed"], costs["per_token"], costs["load"])
    tables = summary([Row.from_dict(row) for row in rows], first_token)
    result = {
        **source,
        "measured_at": measured_at,
        "model": Path(options.model).name,
        "workers": options.workers,
        "size": asdict(size),
        "first_token": costs,
        "overlap": study.journal.once("overlap", lambda: _overlap(held_out)),
        "corpora": {
            name: {**each.facts, "sequences": each.sequences} for name, each in held_out.items()
        },
        "learnt": study.learnt(held_out),
        **tables,
        "rows": rows,
    }
    progress("")
    _show(result, Console(stderr=options.json))
    last_line = {key: result[key] for key in ("passages", "ways", "sift_minus_nearest")}
    write_result(options, result, last_line, indent=None)


if __name__ == "__main__":
    main()
