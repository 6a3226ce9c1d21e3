"""A real model, side by side with an earlier commit: steps, tokens, ingest, start and memory.

A checkout of the earlier commit is made below .cache. Both trees are used through `mayfly corpus
add`, `mayfly serve` and HTTP only, with their own defaults, in alternation: a server of one tree at
a time. An interrupted run continues when the same command is given with the same code.

- step: `steps=20`, one request at a time, from its arrival to the loaded adapter, and what it
  gains: bits per byte of a held-out continuation in per cent of the base model's.
- token: seconds between two tokens, with the base model and with adapters, alone and eight at once.
- ingest: sequences per second of `mayfly corpus add`, and the recall of the nearest neighbours.
- start: seconds until all parts of a server answer, and its memory by process.

    python benchmarks/real_model.py [--model smollm2] [--only step token] [--json]
    [--out benchmarks/results/real-model.json]
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.harness.command_line import argument_parser, progress, write_result
from benchmarks.harness.provenance import CACHE, code_digest, provenance
from benchmarks.latency.journal import Journal
from benchmarks.quality.bootstrap import interval
from benchmarks.side_by_side.ingest import CORPUS, add_corpus, neighbour_recall
from benchmarks.side_by_side.passages import Passage, write_corpus_files
from benchmarks.side_by_side.requests import AT_ONCE, adapt, token_seconds
from benchmarks.side_by_side.server import RunningServer, running
from benchmarks.side_by_side.tree import Tree, checkout, this_tree
from serving.models.catalogue import NANO, model_folder

COMMIT = "2ac1326"
PARTS = ("step", "token", "ingest", "start")
# Alternating rounds; each has its own part of the passages.
ROUNDS = 2
# Both trees have room for the prompts, and the same KV cache.
_FLAGS = ("--max-model-len", "1024")


class Comparison:
    """The measurements of both trees, those of an interrupted run included.

    Args:
        trees: the trees.
        models: folder of each model by name.
        parts: what to measure.
        folder: where measurements and corpora are kept.
        flags: further flags of this tree's server.
    """

    def __init__(
        self,
        trees: Sequence[Tree],
        models: Mapping[str, str],
        parts: Sequence[str],
        folder: Path,
        flags: Sequence[str],
    ) -> None:
        self._trees, self._models, self._parts = trees, models, parts
        self._folder, self._flags = folder, flags
        self._journal = Journal(folder / "measured.json")

    def run(self) -> dict[str, Any]:
        """Measure what is missing; the measurements by model, part and tree, one per round."""
        measured: dict[str, Any] = {}
        for model in self._models:
            passages = self._passages(model)
            by_part: dict[str, dict[str, list[Any]]] = {}
            for number in range(ROUNDS):
                # The first tree of a round is the last one of the round before.
                for tree in self._trees[:: -1 if number % 2 else 1]:
                    made = self._round(tree, model, number, passages[number::ROUNDS])
                    for part, each in made.items():
                        by_part.setdefault(part, {}).setdefault(tree.name, []).append(each)
            measured[model] = by_part
        return measured

    def homes(self, model: str) -> list[Path]:
        """The homes of both trees' corpora."""
        return [self._folder / f"{tree.name}-{model}" for tree in self._trees]

    def _passages(self, model: str) -> list[Passage]:
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(self._models[model])
        return write_corpus_files(self._folder / f"files-{model}", tokenizer)

    def _round(
        self, tree: Tree, model: str, number: int, passages: Sequence[Passage]
    ) -> dict[str, Any]:
        """Measure one tree with one model; each part is kept as soon as it is measured."""
        key, home = f"{tree.name} {model} {number}", self._folder / f"{tree.name}-{model}"
        folder, once = self._models[model], self._journal.once
        made: dict[str, Any] = {}
        # The corpus of the last round is the one that the servers use.
        if number == 0 or ("ingest" in self._parts and model != NANO):
            files = self._folder / f"files-{model}"
            made["ingest"] = once(f"ingest {key}", lambda: add_corpus(tree, home, files, folder))
        measures: dict[str, Callable[[RunningServer], Any]] = {
            "start": lambda server: asdict(server.start),
            "token": token_seconds,
            "step": lambda server: adapt(server, passages),
        }
        # The time of a token is compared on the real model alone.
        skipped = {"token"} if model == NANO else set()
        parts = [part for part in measures if part in self._parts and part not in skipped]
        with ExitStack() as stack:
            if any(f"{part} {key}" not in self._journal for part in parts):
                flags = [*_FLAGS, "--corpus", CORPUS, *(self._flags if tree.name == "new" else ())]
                server = stack.enter_context(running(tree, home, folder, *flags))
            for part in parts:
                made[part] = once(f"{part} {key}", lambda: measures[part](server))  # noqa: B023
        return made


def summary(measured: Mapping[str, Any], recall: float | None) -> dict[str, Any]:
    """The ratios that the measurements end with."""
    result: dict[str, Any] = {}
    real = next(iter(measured))
    for model, parts in measured.items():
        if "step" in parts:
            old, new = (_flat(parts["step"][name]) for name in ("old", "new"))
            pairs = [(old[name], new[name]) for name in sorted(old)]
            ratios = [before["seconds"] / after["seconds"] for before, after in pairs]
            gains = [
                after["percent_of_base"] - before["percent_of_base"] for before, after in pairs
            ]
            result.setdefault("step_speedup", {})[model] = median(ratios)
            result.setdefault("percent_of_base", {})[model] = {
                "old": interval([before["percent_of_base"] for before, _ in pairs]),
                "new": interval([after["percent_of_base"] for _, after in pairs]),
                "difference": interval(gains),
            }
        if "start" in parts:
            for key in ("ready_seconds", "resident_bytes"):
                result.setdefault(key, {})[model] = {
                    tree: _start(rounds, key) for tree, rounds in parts["start"].items()
                }
    if "token" in measured[real]:
        tokens = measured[real]["token"]
        result["adapted_token_ratio"] = {
            str(count): _tokens(tokens["new"], str(count), "adapted")
            / _tokens(tokens["new"], str(count), "base")
            for count in AT_ONCE
        }
        result["base_token_speedup"] = _tokens(tokens["old"], "1", "base") / _tokens(
            tokens["new"], "1", "base"
        )
    if recall is not None:
        rates = {
            tree: median(each["per_second"] for each in rounds)
            for tree, rounds in measured[real]["ingest"].items()
        }
        result |= {"ingest_speedup": rates["new"] / rates["old"], "neighbour_recall": recall}
    return result


def _flat(rounds: Sequence[Sequence[Mapping[str, Any]]]) -> dict[str, Mapping[str, Any]]:
    return {each["passage"]: each for measured in rounds for each in measured}


def _tokens(rounds: Sequence[Mapping[str, Any]], at_once: str, kind: str) -> float:
    return float(median(seconds for each in rounds for seconds in each[at_once][kind]))


def _start(rounds: Sequence[Mapping[str, Any]], key: str) -> Any:
    if key == "ready_seconds":
        return median(each[key] for each in rounds)
    return {name: sizes["resident"] for name, sizes in rounds[-1]["memory"].items()}


def main() -> None:
    """Measure, print, write the JSON."""
    parser = argument_parser(__doc__)
    parser.add_argument("--model", default="smollm2", help="the real model, by name or folder")
    parser.add_argument(
        "--only", nargs="+", choices=PARTS, default=PARTS, help="parts to measure (default: all)"
    )
    parser.add_argument("--commit", default=COMMIT, help="earlier commit (default: %(default)s)")
    parser.add_argument(
        "--serve-flags", default="", help="further flags of this tree's server, in one argument"
    )
    options, facts = parser.parse_args(), provenance()
    folders = [Path(model_folder(name)).absolute() for name in (options.model, NANO)]
    models = {Path(options.model).name: str(folders[0]), NANO: str(folders[1])}
    folder = CACHE / f"real-model-{code_digest(options.commit, options.serve_flags)}"
    folder.mkdir(parents=True, exist_ok=True)
    trees = (checkout(options.commit), this_tree())
    comparison = Comparison(trees, models, options.only, folder, options.serve_flags.split())
    measured = comparison.run()
    real = next(iter(models))
    recall = neighbour_recall(*comparison.homes(real)) if "ingest" in options.only else None
    ratios = summary(measured, recall)
    progress("")
    result = {
        **facts,
        "against": options.commit,
        "model": real,
        "serve_flags": options.serve_flags,
        **ratios,
        "measured": measured,
    }
    write_result(options, result, ratios)


if __name__ == "__main__":
    main()
