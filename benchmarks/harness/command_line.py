"""What the benchmarks' commands share: options, a progress line, and how a result is written."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def argument_parser(doc: str | None) -> argparse.ArgumentParser:
    """A parser with the options of every benchmark.

    Args:
        doc: the module's docstring; its first paragraph describes the command.
    """
    description = " ".join((doc or "").split("\n\n")[0].split())
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument(
        "--json", action="store_true", help="print one JSON object as the last line"
    )
    parser.add_argument("--out", type=Path, help="file for the full result, as JSON")
    return parser


def progress(text: str) -> None:
    """Overwrite one line on standard error, if that is a terminal."""
    if sys.stderr.isatty():
        print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)


def write_result(
    options: argparse.Namespace,
    result: Mapping[str, Any],
    summary: Mapping[str, Any],
    indent: int | None = 1,
) -> None:
    """Write a result to `--out`, and with `--json` print its summary as the last line.

    Args:
        options: parsed by `argument_parser`.
        result: the full result, with its provenance.
        summary: the object that is printed.
        indent: of the file; None for one line.
    """
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(result, indent=indent) + "\n")
    if options.json:
        print(json.dumps(summary))
