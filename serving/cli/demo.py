"""The demonstration: the base model and an adapter continue a passage that is not in the corpus.

The corpus is made of two installed packages that the bundled model was not trained on, without the
file that contains the passage. One passage proves nothing; `benchmarks/quality/main.py` has many.
All requests go through the server's HTTP API.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.panel import Panel
from rich.syntax import Syntax
from rich.table import Table
from rich.text import Text

from serving.cli.console import PlainConsole, plain, row, say, table
from serving.cli.console import show as show_table
from serving.cli.progress import Status, progress_counter
from serving.errors import AdaptationFailedError

if TYPE_CHECKING:
    import httpx

CORPUS = "demo"
PACKAGES = ("fastapi", "starlette")
HELD_OUT = "fastapi/security/http.py"
PREFIX, SUFFIX = 128, 128  # tokens
# With a seed the answers are the same every time.
_SAMPLING = {"max_tokens": 96, "temperature": 0.5, "seed": 0}
_BARS = "▁▂▃▄▅▆▇█"


@dataclass(frozen=True)
class Passage:
    """A passage of the held-out file.

    Attributes:
        name: name of the file.
        tokens: PREFIX + SUFFIX tokens of the base model.
        prefix: text of the first PREFIX tokens, which is the prompt.
        suffix: text of the rest, which is the true continuation.
    """

    name: str
    tokens: tuple[int, ...]
    prefix: str
    suffix: str


@dataclass(frozen=True)
class Result:
    """The result of the demonstration.

    Attributes:
        passage: the passage that was continued.
        base_answer, adapted_answer: the continuations by the base model and by the adapter.
        base_bits_per_byte, adapted_bits_per_byte: the scores of the true continuation.
        adaptation: the server's report.
    """

    passage: Passage
    base_answer: str
    adapted_answer: str
    base_bits_per_byte: float
    adapted_bits_per_byte: float
    adaptation: dict[str, Any]

    def as_json(self) -> str:
        """The result as one line of JSON."""
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


def prepare(home: Path, console: PlainConsole) -> Passage:
    """Build the corpus of the demonstration, unless it exists, and return the held-out passage.

    Args:
        home: the folder that contains the corpora.
        console: where the progress is shown.

    Raises:
        CorpusError: a corpus of the same name exists and cannot be used.
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

    with Status("loading the embedder and the tokenizer", console):
        tokenizer = load_tokenizer(bundled_model())
        embedder = load_embedder()
    root = home / "corpora"
    try:
        corpus = Corpus.create(root, CORPUS, embedder, tokenizer_digest(tokenizer))
    except CorpusError as problem:
        raise CorpusError(
            f"{problem}; the demonstration needs a corpus of this name: remove the existing one "
            f"with `mayfly corpus remove {CORPUS}`, or use another folder with --home"
        ) from problem

    def documents() -> Iterator[Document]:
        for package in PACKAGES:
            folder = package_folder(package)
            for file in find_files(folder):
                name = f"{package}/{file.relative_to(folder)}"
                if name != HELD_OUT:
                    yield from read_file(file, name)

    sources = " and ".join(PACKAGES)
    say(f"building the corpus from the installed packages {sources} ...", "dim", console)
    with progress_counter("embedding", "sequences", console=console) as counter:
        ingest(
            corpus,
            documents(),
            embedder,
            tokenizer,
            on_progress=lambda _document, sequences: counter.advance(sequences),
        )
    count, sequences = corpus.counts()
    summary = f"corpus: {count} documents, {sequences} sequences; held out: {HELD_OUT}"
    say(summary, "dim", console)
    corpus.close()

    text = (package_folder(PACKAGES[0]).parent / HELD_OUT).read_text()
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    start = len(encoded["input_ids"]) // 3
    ids = encoded["input_ids"][start : start + PREFIX + SUFFIX]
    offsets = encoded["offset_mapping"][start : start + PREFIX + SUFFIX]
    first, middle, last = offsets[0][0], offsets[PREFIX][0], offsets[-1][1]
    return Passage(HELD_OUT, tuple(ids), text[first:middle], text[middle:last])


def run(url: str, passage: Passage, console: PlainConsole) -> Result:
    """Request a continuation and a score of the true one, with the budgets `none` and `auto`.

    Raises:
        AdaptationFailedError: the server answers with an error.
    """
    import httpx

    answers: dict[str, str] = {}
    scores: dict[str, float] = {}
    report: dict[str, Any] = {}
    with httpx.Client(base_url=url, timeout=300) as client:
        for budget in ("none", "auto"):
            say(f"requesting a continuation with Compute-Budget: {budget} ...", "dim", console)
            reply = _complete(client, budget, passage, list(passage.tokens[:PREFIX]), **_SAMPLING)
            answers[budget], report = reply["choices"][0]["text"], reply["adaptation"]
            say(f"scoring the true continuation with Compute-Budget: {budget} ...", "dim", console)
            reply = _complete(
                client, budget, passage, list(passage.tokens), max_tokens=1, prompt_logprobs=0
            )
            scores[budget] = _bits_per_byte(reply["choices"][0]["prompt_logprobs"], passage)
    return Result(passage, answers["none"], answers["auto"], scores["none"], scores["auto"], report)


def show(result: Result, url: str, console: PlainConsole) -> None:
    """Print the result in readable form."""
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
    score = Text("bits per byte of the true continuation (lower is better): base ")
    score.append(f"{result.base_bits_per_byte:.3f}", "bold").append(", adapted ")
    score.append(f"{result.adapted_bits_per_byte:.3f}", "bold").append(f" ({share:.1f} %)")
    say(score, to=console)
    if not report["adapted"]:
        say(f"the base model answered both requests: {report['reason']}", to=console)
    if report["prompt_loss"]:
        loss = "prompt loss: {before:.2f} -> {after:.2f} after {at} sequences"
        say(loss.format(**report["prompt_loss"]), to=console)
    if sigma := report["uncertainty"]:
        curve = "".join(_BARS[min(7, int(8 * value))] for value in sigma)
        say(
            f"uncertainty sigma_0 to sigma_{len(sigma) - 1}: {curve} "
            f"{sigma[0]:.2f} to {sigma[-1]:.2f}, stopped by {report['stop']}",
            to=console,
        )
    sources = table("trained on", "at character", "times")
    for source in report["sources"][:8]:
        row(sources, source["name"], str(source["start"]), str(source["times"]))
    show_table(sources, console)
    if len(report["sources"]) > 8:
        say(f"and {len(report['sources']) - 8} more sequences", to=console)
    stages = ", ".join(f"{stage} {seconds:.2f}" for stage, seconds in report["seconds"].items())
    say(
        f"seconds: {stages}; {report['spent']['seconds']:.2f} in all until the adapter was loaded",
        to=console,
    )
    say("\nto try next (the server keeps running with `mayfly demo --keep`):", to=console)
    print_curl(url, console)


def print_curl(url: str, console: PlainConsole) -> None:
    """Print a curl command to try, on lines that can be copied."""
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
        # Only the prompt is adapted to, even when the true continuation is scored.
        json={
            "model": "nano",
            "prompt": prompt,
            "adaptation": {"prompt": passage.prefix},
            **options,
        },
    )
    if reply.status_code != 200:
        raise AdaptationFailedError(f"the server answered {reply.status_code}: {reply.text[:500]}")
    return dict(reply.json())


def _bits_per_byte(logprobs: list[dict[str, dict[str, float]] | None], passage: Passage) -> float:
    scored = [next(iter(entry.values()))["logprob"] for entry in logprobs[PREFIX:] if entry]
    assert len(scored) == len(passage.tokens) - PREFIX
    return -sum(scored) / math.log(2) / len(passage.suffix.encode())
