"""LoRA settings of a pretrained model: what each gains on source code that is younger than it.

The corpus is of the installed vLLM's `v1` sources. Whole files are held out; one passage of each is
a prompt of 384 tokens and a suffix of 96 that is scored, under the server's own selection. Settings
are chosen on the first passages, and those named by `--settings` confirmed on the others. With
`--probes`, a training takes 50 steps, and the prompt is probed where a server's `auto` would (for
`benchmarks/quality/stopping_rules.py`). Measurements are kept in .cache, and an interrupted run
continues; `--seconds` interrupts it.

    python -m benchmarks.quality.real_model_settings --model DIR --part choose
    python -m benchmarks.quality.real_model_settings --model DIR --part confirm --settings NAME ...
    python -m benchmarks.quality.real_model_settings --model DIR --part report --out FILE
"""

from __future__ import annotations

import argparse
import importlib.util
import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from transformers import AutoTokenizer

from adapters import Trainer, TrainerConfig, TrainingProgress, TrainingRequest
from adapters.config import PRECISIONS
from benchmarks.harness.command_line import argument_parser, progress, write_result
from benchmarks.harness.provenance import CACHE, provenance
from benchmarks.quality.bootstrap import paired_means
from benchmarks.quality.measurements import Measurement, MeasurementFile, record
from benchmarks.quality.passages import Passage, PassageSet, make_set
from benchmarks.quality.probe_curves import probe_steps
from benchmarks.quality.variants import STEPS, open_selector
from selection import Selection, Selector, SelectorConfig
from selection.embedding import Prompt
from selection.ingest.ingest import Document
from selection.request import SelectionRequest
from serving.adaptation.prompts import PROBE_TOKENS

PREFIX, SUFFIX = 384, 96  # tokens
CHOOSING, CONFIRMING = 12, 16  # passages
CHOOSING_STEPS = (0, 5, 10, 20)
MAX_FILE_BYTES, MAX_CORPUS_BYTES = 200_000, 1_600_000


@dataclass(frozen=True)
class Setting:
    """How adapters are trained: fields of `TrainerConfig`."""

    name: str
    rank: int
    scale: float
    learning_rate: float


SETTINGS = (
    Setting("paper", 64, 1.0, 5e-4),
    Setting("nano", 16, 16.0, 6e-4),
    Setting("16 x16 3e-4", 16, 16.0, 3e-4),
    Setting("16 x4 6e-4", 16, 4.0, 6e-4),
    Setting("64 x1 1e-3", 64, 1.0, 1e-3),
)


def main() -> None:
    """Measure what no former run has measured, or report all that was."""
    options, facts = _options(), provenance()
    selector = open_selector(SelectorConfig.embedder, options.model)
    passage_set = make_passages(options, selector)
    file = MeasurementFile(
        CACHE / "real-model-settings" / f"{passage_set.corpus}-{options.precision}.jsonl"
    )
    settings = [each for each in SETTINGS if not options.settings or each.name in options.settings]
    choosing, confirming = passage_set.passages[:CHOOSING], passage_set.passages[CHOOSING:]
    if options.part == "report":
        rows, steps = list(file.measurements.values()), (*CHOOSING_STEPS[1:], STEPS)
        rows = [row for row in rows if row.variant in {each.name for each in SETTINGS}]
        result = {
            **facts,
            "model": Path(options.model).name,
            "precision": options.precision,
            "corpus_sequences": passage_set.sequences,
            "settings": {each.name: asdict(each) for each in SETTINGS},
            "choosing": paired_means(rows, choosing, SETTINGS[0].name, steps),
            "confirming": paired_means(rows, confirming, SETTINGS[0].name, steps),
            "measurements": [record(row) for row in rows],
        }
        show(result, Console(stderr=options.json))
        write_result(options, result, result["confirming"], indent=None)
        return
    at = sorted({*CHOOSING_STEPS, *(probe_steps() if options.probes else ())})
    passages = (choosing if options.part == "choose" else confirming)[: options.passages]
    end = time.monotonic() + options.seconds
    trainers: dict[Setting, Trainer] = {}
    for passage in passages:
        missing = [each for each in settings if _key(each, passage) not in file.measurements]
        if missing and time.monotonic() > end:
            return
        selection = select(selector, passage, passage_set.corpus) if missing else None
        for setting in missing:
            progress(f"{setting.name}: {passage.key}")
            if setting not in trainers:
                trainers[setting] = make_trainer(options, setting)
            assert selection is not None
            measured = measure(trainers[setting], setting, passage, selection, at)
            file.append(_key(setting, passage), measured)
    print("all measured")


def _options() -> argparse.Namespace:
    parser = argument_parser(__doc__)
    parser.add_argument("--model", required=True, help="folder of the base model")
    parser.add_argument("--part", choices=("choose", "confirm", "report"), required=True)
    parser.add_argument(
        "--settings", nargs="+", choices=[each.name for each in SETTINGS], metavar="NAME"
    )
    parser.add_argument("--precision", choices=PRECISIONS, default="auto")
    parser.add_argument("--probes", action="store_true", help="50 steps, as `auto` probes them")
    parser.add_argument("--passages", type=int, help="measure the first ones only")
    parser.add_argument(
        "--seconds", type=float, default=math.inf, help="begin no passage after this time"
    )
    return parser.parse_args()


def make_passages(options: argparse.Namespace, selector: Selector) -> PassageSet:
    """Hold out passages of vLLM's sources, and ingest other files of them."""
    found = importlib.util.find_spec("vllm")
    assert found is not None
    assert found.origin is not None
    folder = Path(found.origin).parent / "v1"
    documents = [
        Document(file.relative_to(folder).as_posix(), file.read_text())
        for file in sorted(folder.rglob("*.py"))
        if 0 < file.stat().st_size <= MAX_FILE_BYTES
    ]
    return make_set(
        "real-model",
        {folder.name: documents},
        CHOOSING + CONFIRMING,
        options.model,
        selector,
        max_bytes=MAX_CORPUS_BYTES,
        prefix_tokens=PREFIX,
        suffix_tokens=SUFFIX,
    )


def select(selector: Selector, passage: Passage, corpus: str) -> Selection:
    """The server's selection for a passage's prompt, near duplicates of held-out files left out."""
    return selector.select(
        SelectionRequest(
            [Prompt(passage.prefix)],
            corpus,
            steps=STEPS,
            filter={"type": "eq", "key": "near", "value": False},
        )
    )


def make_trainer(options: argparse.Namespace, setting: Setting) -> Trainer:
    """A trainer of these settings."""
    return Trainer(
        TrainerConfig(
            options.model,
            precision=options.precision,
            rank=setting.rank,
            scale=setting.scale,
            learning_rate=setting.learning_rate,
            slots=1,
        )
    )


def measure(
    trainer: Trainer,
    setting: Setting,
    passage: Passage,
    selection: Selection,
    at: Sequence[int],
) -> Measurement:
    """Train on a selection, and score prompt and suffix after each number of sequences in `at`."""
    probe = list(passage.tokens[PREFIX - PROBE_TOKENS : PREFIX])
    probe_text = str(AutoTokenizer.from_pretrained(trainer.config.model).decode(probe))
    prompt: dict[str, float] = {}
    bits: dict[str, float] = {}
    seconds: list[float] = []

    def score(sequences: int, weights: bytes | None = None) -> None:
        for scores, tokens, start, text in (
            (prompt, probe, 1, probe_text),
            (bits, passage.tokens, PREFIX, passage.suffix),
        ):
            nats = trainer.nats(tokens, start, weights)
            scores[str(sequences)] = nats / math.log(2) / len(text.encode())

    score(0)
    last = time.perf_counter()

    def on_step(state: TrainingProgress) -> None:
        nonlocal last
        seconds.append(time.perf_counter() - last + (seconds[-1] if seconds else 0.0))
        if state.sequences_used in at:
            score(state.sequences_used, trainer.export(state.slot))
        last = time.perf_counter()

    result = trainer.train(TrainingRequest(selection.sequences[: max(at)]), on_step=on_step)
    return Measurement(
        variant=setting.name,
        group=passage.group,
        document=passage.name,
        passage=passage.key,
        prompt=prompt,
        bits=bits,
        sigma=selection.uncertainty,
        irreducible=selection.irreducible,
        losses=result.losses,
        choosing_seconds=sum(selection.seconds.values()),
        step_seconds=tuple(seconds),
        alone=False,
        distinct=len(set(selection.ids)),
    )


def show(result: dict[str, Any], console: Console) -> None:
    """Print per cent of base, and the difference to the first setting, by steps."""
    for part in ("choosing", "confirming"):
        heads = ("setting", "steps", "passages", "% of base", f"minus {SETTINGS[0].name!r}")
        table = Table(*heads, title=part, box=None, pad_edge=False)
        for name, by_steps in result[part].items():
            for steps, found in by_steps.items():
                cells = (
                    "" if mean is None else "{:.1f} ({:.1f} to {:.1f})".format(*mean)
                    for mean in (found["percent_of_base"], found["difference"])
                )
                table.add_row(name, steps, str(found["passages"]), *cells)
        console.print(table)


def _key(setting: Setting, passage: Passage) -> str:
    return f"{setting.name}|{passage.key}"


if __name__ == "__main__":
    main()
