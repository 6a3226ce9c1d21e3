"""The command `mayfly calibrate`: find the settings that suit a corpus, show what they bring, and keep them with it.

The search is in `serving.calibrate`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from serving.terminal import EMBEDDER, HOME, EmbedderName, Home, Model, err, out

if TYPE_CHECKING:
    from serving.calibrate import Found

_SHOWN = (0, 5, 10, 20, 30, 40, 50)  # steps


def calibrate(
    corpus: Annotated[str, typer.Argument(help="The corpus.")],
    documents: Annotated[
        int, typer.Option("--documents", min=4, help="Held out: half of them to choose on, half to judge.")
    ] = 48,
    forget: Annotated[bool, typer.Option("--forget", help="Go back to the built-in defaults.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object as the last line.")] = False,
    model: Model = None,
    embedder: EmbedderName = EMBEDDER,
    home: Home = HOME,
) -> None:
    """Choose lambda', learning rate, rank and gain for a model and a corpus, and keep them with the corpus.

    A server takes the rank from its --corpus, everything else from the corpus that a request names; what it is told by
    its own options goes first.

    Example: [cyan]mayfly calibrate nx[/]
    """
    from dataclasses import asdict
    from json import dumps

    from selection.calibration import model_digest, to_remember
    from selection.corpus import Corpus
    from selection.selector import Selector, SelectorConfig
    from serving.calibrate import calibrate as search
    from serving.config import bundled_model

    base = model or bundled_model()
    opened = Corpus.open(home / "corpora", corpus)
    try:
        if forget:
            opened.remember(to_remember(None, opened.meta(), model_digest(base)))
            out.print(f"corpus {corpus}: the built-in defaults hold again", highlight=False)
            return
        with err.status("loading the embedder and the base model"):
            selector = Selector(SelectorConfig(home / "corpora", embedder, base))
        with _bar() as progress:

            def on_setting(what: str, count: int) -> Callable[[], None]:
                task = progress.add_task(what, total=count)
                return lambda: progress.advance(task)

            found = search(selector, base, corpus, documents, on_setting)
        opened.remember(to_remember(found.calibration, opened.meta(), model_digest(base)))
    finally:
        opened.close()
    _show(found, corpus)
    if json:
        print(dumps(asdict(found)))


def _show(found: Found, corpus: str) -> None:
    from serving.calibrate import told

    table = Table("tried", "% of base", box=None, pad_edge=False)
    for tried in found.tried:
        table.add_row(told(tried.setting), f"{tried.percent_of_base:.1f}")
    err.print(table)
    curve = Table("% of base after", *(f"{n} steps" for n in _SHOWN), box=None, pad_edge=False)
    for name, points in (("built-in defaults", found.by_default), ("calibrated", found.calibrated)):
        curve.add_row(name, *(f"{points[n]:.1f}" for n in _SHOWN))
    err.print(curve)
    kept = found.calibration
    out.print(
        f"corpus {corpus} keeps: lambda' {kept.regularisation:g}, learning rate {kept.learning_rate:.2g}, rank "
        f"{kept.rank}, gain {kept.gain:.2g}: {kept.percent_of_base:.1f} % of base on {kept.passages} other documents "
        f"({kept.percent_by_default:.1f} with the built-in defaults); by gain {found.steps:.0f} steps for "
        f"{found.gain_share:.0%} of that gain",
        highlight=False,
    )


def _bar() -> Progress:
    return Progress(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), console=err
    )
