"""The demonstration: one passage the corpus does not hold, continued by the base model and by an
adapter.

The corpus is real text that is on the machine anyway: two installed packages that the bundled model
never saw, without the file that the passage comes from. One passage proves nothing;
`benchmarks/quality/main.py` has many. Everything goes through the server's own HTTP interface.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.panel import Panel
from rich.syntax import Syntax
from rich.table import Table
from rich.text import Text

from serving.cli.console import plain, row, say, table
from serving.cli.console import show as show_table
from serving.cli.progress import reporting, working
from serving.errors import AdaptationFailedError

if TYPE_CHECKING:
    import httpx

CORPUS = "demo"
PACKAGES = ("fastapi", "starlette")
HELD_OUT = "fastapi/security/http.py"
PREFIX, SUFFIX = 128, 128  # tokens
_SAMPLING = {"max_tokens": 96, "temperature": 0.5, "seed": 0}  # seeded: the same answers every time
_BARS = "▁▂▃▄▅▆▇█"


@dataclass(frozen=True)
class Passage:
    """A piece of the held-out file, in the model's tokens and as text."""

    name: str
    tokens: tuple[int, ...]
    prefix: str
    suffix: str


@dataclass(frozen=True)
class Result:
    """What the demonstration found; `adaptation` is the server's report."""

    passage: Passage
    base_answer: str
    adapted_answer: str
    base_bits_per_byte: float
    adapted_bits_per_byte: float
    adaptation: dict[str, Any]

    def as_json(self) -> str:
        """One line."""
        report = self.adaptation
        return json.dumps(
            {
                "base_bits_per_byte": round(self.base_bits_per_byte, 4),
                "adapted_bits_per_byte": round(self.adapted_bits_per_byte, 4),
                "steps": report["spent"]["steps"],
                "stop": report["stop"],
                "sigma": report["uncertainty"],
                "sources": report["sources"],
                "prompt_loss": report["prompt_loss"],
                "seconds": report["seconds"],
            }
        )


def prepare(home: Path, console: Console) -> Passage:
    """Build the demonstration's corpus, or find it built; cut the passage out of the file that is
    held out of it.
    """
    from selection.corpus.corpus import Corpus
    from selection.corpus.sqlite_store import CorpusError
    from selection.embedding import load_embedder
    from selection.ingest.ingest import (
        Document,
        find_files,
        ingest,
        package_folder,
        read_file,
        tokenizer_digest,
    )
    from serving.config import bundled_model
    from serving.settings.model_files import load_tokenizer

    with working("loading the embedder and the tokenizer", console):
        tokenizer = load_tokenizer(bundled_model())
        embedder = load_embedder()
    root = home / "corpora"
    try:
        corpus = Corpus.create(root, CORPUS, embedder, tokenizer_digest(tokenizer))
    except CorpusError as problem:
        raise CorpusError(
            f"{problem}; the demonstration needs a corpus of that name: remove this one with "
            f"`mayfly corpus remove {CORPUS}`, or choose another folder with --home"
        ) from problem

    def documents() -> Iterator[Document]:
        for package in PACKAGES:
            folder = package_folder(package)
            for file in find_files(folder):
                name = f"{package}/{file.relative_to(folder)}"
                if name != HELD_OUT:
                    yield from read_file(file, name)

    said = f"building the corpus from the installed packages {' and '.join(PACKAGES)} ..."
    say(said, "dim", console)
    with reporting("embedding", "sequences", console=console) as done:
        ingest(
            corpus,
            documents(),
            embedder,
            tokenizer,
            on_progress=lambda _document, sequences: done.advance(sequences),
        )
    say(
        "corpus of {} documents, {} sequences; held out: {}".format(*corpus.counts(), HELD_OUT),
        "dim",
        console,
    )
    corpus.close()

    text = (package_folder(PACKAGES[0]).parent / HELD_OUT).read_text()
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    start = len(encoded["input_ids"]) // 3
    ids = encoded["input_ids"][start : start + PREFIX + SUFFIX]
    offsets = encoded["offset_mapping"][start : start + PREFIX + SUFFIX]
    first, middle, last = offsets[0][0], offsets[PREFIX][0], offsets[-1][1]
    return Passage(HELD_OUT, tuple(ids), text[first:middle], text[middle:last])


def demonstrate(url: str, passage: Passage, console: Console) -> Result:
    """Ask the server for the continuation, and score the true one, under `none` and under `auto`."""
    import httpx

    answers: dict[str, str] = {}
    scores: dict[str, float] = {}
    report: dict[str, Any] = {}
    with httpx.Client(base_url=url, timeout=300) as client:
        for budget in ("none", "auto"):
            say(f"asking for the continuation with Compute-Budget: {budget} ...", "dim", console)
            reply = _complete(client, budget, passage, list(passage.tokens[:PREFIX]), **_SAMPLING)
            answers[budget], report = reply["choices"][0]["text"], reply["adaptation"]
            say(f"scoring the true continuation with Compute-Budget: {budget} ...", "dim", console)
            reply = _complete(
                client, budget, passage, list(passage.tokens), max_tokens=1, prompt_logprobs=0
            )
            scores[budget] = _bits_per_byte(reply["choices"][0]["prompt_logprobs"], passage)
    return Result(passage, answers["none"], answers["auto"], scores["none"], scores["auto"], report)


def show(result: Result, url: str, console: Console) -> None:
    """Print the result for a person."""
    report = result.adaptation
    steps = report["spent"]["steps"]
    console.print(_panel(result.passage.prefix, f"prompt: {result.passage.name}"))
    answers = Table.grid(expand=True)
    answers.add_column(ratio=1)
    answers.add_column(ratio=1)
    answers.add_row(
        _panel(result.base_answer, "base model"),
        _panel(result.adapted_answer, f"adapted, {steps} steps"),
    )
    console.print(answers)
    console.print(_panel(result.passage.suffix, "the true continuation"))
    share = 100 * result.adapted_bits_per_byte / result.base_bits_per_byte
    said = Text("bits per byte of the true continuation: base ")
    said.append(f"{result.base_bits_per_byte:.3f}", "bold").append(", adapted ")
    said.append(f"{result.adapted_bits_per_byte:.3f}", "bold").append(f" ({share:.1f} % of base)")
    say(said, to=console)
    if not report["adapted"]:
        say(f"the base model answered both times: {report['reason']}", to=console)
    if report["prompt_loss"]:
        loss = "loss of the prompt itself: {before:.2f} -> {after:.2f} after {at} sequences"
        say(loss.format(**report["prompt_loss"]), to=console)
    if sigma := report["uncertainty"]:
        curve = "".join(_BARS[min(7, int(8 * value))] for value in sigma)
        say(
            f"uncertainty sigma_0 to sigma_{len(sigma) - 1}: {curve} {sigma[0]:.2f} to {sigma[-1]:.2f}, "
            f"stopped by {report['stop']}",
            to=console,
        )
    sources = table("taught by", "from character", "times")
    for source in report["sources"][:8]:
        row(sources, source["name"], str(source["start"]), str(source["times"]))
    show_table(sources, console)
    if len(report["sources"]) > 8:
        say(f"and {len(report['sources']) - 8} more sequences", to=console)
    stages = ", ".join(f"{stage} {seconds:.2f}" for stage, seconds in report["seconds"].items())
    say(
        f"seconds: {stages}; {report['spent']['seconds']:.2f} from arrival to the loaded adapter",
        to=console,
    )
    say("\ntry next (start the server with `mayfly demo --keep`):", to=console)
    print_curl(url, console)


def print_curl(url: str, console: Console) -> None:
    """A request to try, on lines that can be copied."""
    body = json.dumps(
        {
            "model": "nano",
            "messages": [{"role": "user", "content": "class APIKeyHeader("}],
            "max_tokens": 64,
        }
    )
    say(
        f"curl -si {url}/v1/chat/completions -H 'Content-Type: application/json' \\\n"
        f"  -H 'Compute-Budget: steps=20, seconds=5' -d '{body}'",
        to=console,
    )


def _panel(code: str, title: str) -> Panel:
    shown = Syntax(plain(code).strip("\n"), "python", word_wrap=True, background_color="default")
    return Panel(shown, title=Text(title))


def _complete(
    client: httpx.Client, budget: str, passage: Passage, prompt: list[int], **options: Any
) -> dict[str, Any]:
    reply = client.post(
        "/v1/completions",
        headers={"Compute-Budget": budget},
        # The adapter may know the prompt alone, also when the true continuation is scored.
        json={
            "model": "nano",
            "prompt": prompt,
            "adaptation": {"prompt": passage.prefix},
            **options,
        },
    )
    if reply.status_code != 200:
        raise AdaptationFailedError(f"the server answers {reply.status_code}: {reply.text[:500]}")
    return dict(reply.json())


def _bits_per_byte(logprobs: list[dict[str, dict[str, float]] | None], passage: Passage) -> float:
    scored = [next(iter(entry.values()))["logprob"] for entry in logprobs[PREFIX:] if entry]
    assert len(scored) == len(passage.tokens) - PREFIX
    return -sum(scored) / math.log(2) / len(passage.suffix.encode())
