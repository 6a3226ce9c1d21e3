"""Ingest: how many sequences a second `mayfly corpus add` embeds and stores, and whether
bfloat16 finds the same neighbours as float32.

The command runs in processes of its own, start included, on the first files of an installed package
that have `--limit` sequences; embedding alone is timed in other ones. With `--old` a checkout of an
earlier commit does the same in turns with this tree, and the ratios are medians over the turns.

Recall is the share of the nearest sequences by float32 vectors that are also the nearest by the
default embedder's. Queries are the second halves of sequences that are not searched.

    python -m benchmarks.selection.ingest --package networkx --limit 600 --repeat 3 --old

Shapes: N sequences, Q queries, D embedding dimensions.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from benchmarks.harness.command_line import argument_parser, progress, write_result
from benchmarks.harness.measures import spread, timed
from benchmarks.harness.processes import in_fresh_process
from benchmarks.harness.provenance import ROOT, provenance
from selection.embedding import Embeddings

OLD_COMMIT = "2ac132664211ee9bb8caf21fe914ba54fe93357c"
NEAREST = 200
# Run in either tree: the modules have other names in the old one.
_ADD = """
import sys
try:
    from serving.cli.main import main
except ImportError:
    from serving.cli import main
sys.argv = ["mayfly", "corpus", "add", *sys.argv[1:]]
main()
"""
_EMBED = """
import json, sys, time
from selection.embedding import load_embedder
texts, embedder = json.load(sys.stdin), load_embedder()
embedder.embed(texts[:64])
started = time.perf_counter()
for first in range(0, len(texts), 64):
    embedder.embed(texts[first : first + 64])
print(time.perf_counter() - started)
"""


def main() -> None:
    """Measure, print, write the JSON."""
    parser = argument_parser(__doc__)
    parser.add_argument("--package", default="networkx", help="package that is added")
    parser.add_argument("--limit", type=int, default=600, help="sequences that are added")
    parser.add_argument("--repeat", type=int, default=3, help="turns")
    parser.add_argument(
        "--old",
        nargs="?",
        type=Path,
        const=Path(),
        help=f"compare with this checkout; without a folder one of {OLD_COMMIT[:7]} is made",
    )
    parser.add_argument("--searched", type=int, default=2000, help="sequences for recall, or 0")
    parser.add_argument("--queries", type=int, default=100, help="queries for recall")
    options = parser.parse_args()
    cores = len(os.sched_getaffinity(0))

    texts = in_fresh_process(1, package_texts, options.package)
    result: dict[str, Any] = provenance() | {"package": options.package, "threads": cores}
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="mayfly-ingest-")))
        trees = {"new": ROOT}
        if options.old is not None:
            given = options.old != Path()
            trees["old"] = options.old if given else stack.enter_context(_old_checkout())
        chosen = _copy_files(texts, options.limit, folder / "texts")
        runs: dict[str, list[dict[str, float]]] = {name: [] for name in trees}
        for turn in range(options.repeat):
            for name, tree in trees.items():
                progress(f"turn {turn + 1} of {options.repeat}: {name}")
                runs[name].append(measure(tree, folder, chosen, cores))
    result |= _summary(runs["new"])
    if "old" in runs:
        result["old"] = _summary(runs["old"])
        pairs = list(zip(runs["new"], runs["old"], strict=True))
        for key, ratio in (("rate", "ingest_speedup"), ("embedding_rate", "embedding_speedup")):
            result[ratio] = median(new[key] / old[key] for new, old in pairs)
    if options.searched:
        progress("recall")
        everything = [text for _, parts in texts for text in parts]
        result |= in_fresh_process(cores, recall, everything, options.searched, options.queries)
    progress("")
    if not options.json:
        print(json.dumps(result, indent=1))
    write_result(options, result, result)


def package_texts(package: str) -> list[tuple[str, list[str]]]:
    """The files of an installed package, each with the texts of its sequences."""
    from transformers import AutoTokenizer

    from selection.ingest.files import list_files
    from selection.ingest.ingest import Chunking, read_file, split
    from serving.config import bundled_model

    tokenizer = AutoTokenizer.from_pretrained(bundled_model())
    return [
        (str(file.path), [chunk.text for chunk in split(document.text, tokenizer, Chunking())])
        for file in list_files([], [package]).files
        if file.path.suffix == ".py"
        for document in read_file(file.path, file.name)
    ]


def measure(tree: Path, folder: Path, texts: list[str], cores: int) -> dict[str, float]:
    """One run of the command and one of embedding alone, by a tree."""
    home = folder / "home"
    seconds, printed = timed(
        _run, tree, _ADD, cores, "bench", str(folder / "texts"), "--home", str(home)
    )
    shutil.rmtree(home)
    added = re.search(r"(\d+) sequences", printed)
    assert added is not None, printed
    embedding_seconds = float(_run(tree, _EMBED, cores, stdin=json.dumps(texts)))
    return {
        "sequences": int(added[1]),
        "seconds": seconds,
        "rate": int(added[1]) / seconds,
        "embedding_seconds": embedding_seconds,
        "embedding_rate": len(texts) / embedding_seconds,
    }


def recall(texts: list[str], searched: int, queries: int) -> dict[str, Any]:
    """The default embedder's recall of the nearest by float32 vectors.

    Args:
        texts: sequences to draw from.
        searched: sequences that are searched.
        queries: sequences whose second halves are the queries.
    """
    import torch
    from transformers import AutoTokenizer

    from selection.embedding import MINILM_WINDOW, bundled_minilm, load_embedder
    from selection.minilm import MiniLM, multiplies_bfloat16

    count = searched + queries
    assert len(texts) >= count, f"the package has only {len(texts)} sequences, not {count}"
    drawn = [texts[i] for i in np.random.default_rng(0).permutation(len(texts))[:count]]
    drawn[searched:] = [text[len(text) // 2 :] for text in drawn[searched:]]
    folder, _ = bundled_minilm()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    exact = MiniLM(folder, tokenizer, MINILM_WINDOW, torch.float32).embed(drawn)
    fast = load_embedder().embed(drawn)
    nearest = _nearest(exact, exact, searched)
    return {
        "neighbour_recall": _overlap(nearest, _nearest(fast, fast, searched)),
        # A corpus that an earlier version has embedded in float32.
        "neighbour_recall_float32_corpus": _overlap(nearest, _nearest(exact, fast, searched)),
        "least_cosine": float((exact * fast).sum(axis=1).min()),
        "dtype": "bfloat16" if multiplies_bfloat16() else "float32",
        "searched": searched,
        "queries": queries,
        "nearest": NEAREST,
    }


def _nearest(corpus: Embeddings, queries: Embeddings, searched: int) -> list[set[int]]:
    similarity_QN = np.abs(queries[searched:] @ corpus[:searched].T)
    return [set(row.tolist()) for row in np.argsort(-similarity_QN, axis=1)[:, :NEAREST]]


def _overlap(nearest: list[set[int]], found: list[set[int]]) -> float:
    shares = [len(a & b) / len(a) for a, b in zip(nearest, found, strict=True)]
    return float(np.mean(shares))


def _copy_files(files: list[tuple[str, list[str]]], limit: int, folder: Path) -> list[str]:
    """Copy the first files that have `limit` sequences; returns the texts of these."""
    folder.mkdir()
    texts: list[str] = []
    for number, (file, parts) in enumerate(files):
        if len(texts) >= limit:
            break
        shutil.copy(file, folder / f"{number}.py")
        texts += parts
    return texts


def _run(tree: Path, code: str, cores: int, *arguments: str, stdin: str = "") -> str:
    """Run Python code with the packages of a tree; returns what it prints."""
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        cwd=tree,
        env={**os.environ, "PYTHONPATH": str(tree), "OMP_NUM_THREADS": str(cores)},
        input=stdin,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    ).stdout


@contextlib.contextmanager
def _old_checkout() -> Iterator[Path]:
    """A checkout of OLD_COMMIT within the `with` block."""
    with tempfile.TemporaryDirectory(prefix="mayfly-old-") as parent:
        folder = Path(parent) / "tree"
        git = ["git", "-C", str(ROOT), "worktree"]
        add = [*git, "add", "--quiet", "--detach", str(folder), OLD_COMMIT]
        subprocess.run(add, check=True)
        try:
            yield folder
        finally:
            subprocess.run([*git, "remove", "--force", str(folder)], check=True)


def _summary(runs: list[dict[str, float]]) -> dict[str, Any]:
    """The medians of the runs, with the spread of the two rates."""
    medians: dict[str, Any] = {key: median(run[key] for run in runs) for key in runs[0]}
    return medians | {
        "rate_spread": spread([run["rate"] for run in runs]),
        "embedding_rate_spread": spread([run["embedding_rate"] for run in runs]),
    }


if __name__ == "__main__":
    main()
