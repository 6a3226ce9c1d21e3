"""The command `mayfly calibrate`: find the settings that suit a corpus, show what they bring, and
keep them with it.

The search is in `serving.calibration`.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack, closing
from typing import TYPE_CHECKING, Annotated

import typer

from serving.cli.console import err, out, row, say, show, table
from serving.cli.progress import Status, progress_counter, report_interrupt
from serving.settings.shared_options import EMBEDDER, HOME, EmbedderName, Home, Model

if TYPE_CHECKING:
    from serving.calibration import BestSettings

_SHOWN = (0, 5, 10, 20, 30, 40, 50)  # steps


def calibrate(
    corpus: Annotated[str, typer.Argument(help="The corpus.")],
    documents: Annotated[
        int,
        typer.Option(
            "--documents", min=4, help="Held out: half of them to choose on, half to judge."
        ),
    ] = 48,
    forget: Annotated[
        bool, typer.Option("--forget", help="Go back to the built-in defaults.")
    ] = False,
    json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object as the last line.")
    ] = False,
    model: Model = None,
    embedder: EmbedderName = EMBEDDER,
    home: Home = HOME,
) -> None:
    """Choose lambda', learning rate, rank and gain for a model and a corpus, and keep them with the
    corpus.

    A server takes the rank from its --corpus, everything else from the corpus that a request names;
    what it is told by its own options goes first.

    Example: [cyan]mayfly calibrate nx[/]
    """
    from dataclasses import asdict
    from json import dumps

    from selection.corpus.calibration import calibration_meta, model_digest
    from selection.corpus.corpus import Corpus
    from serving.config import bundled_model
    from serving.settings.corpus import check_corpus
    from serving.settings.model_files import check_embedder, check_model

    base = model or bundled_model()
    check_model(base)
    if not forget:
        check_embedder(embedder, base)
        check_corpus(home / "corpora", corpus, embedder)
    with closing(Corpus.open(home / "corpora", corpus)) as opened:
        if forget:
            opened.update_meta(calibration_meta(None, opened.meta(), model_digest(base)))
            say(f"corpus {corpus}: the built-in defaults hold again", to=out)
            return
        with report_interrupt(lambda: f"corpus {corpus} keeps the settings that it had"):
            with Status("loading the embedder and the base model"):
                from selection.selector import Selector, SelectorConfig
                from serving.calibration import calibrate as search

                selector = Selector(SelectorConfig(home / "corpora", embedder, base))
            with ExitStack() as bars:

                def on_setting(what: str, count: int) -> Callable[[], None]:
                    bars.close()  # that of the setting before
                    done = bars.enter_context(progress_counter(what, "documents", count))
                    return lambda: done.advance()

                found = search(selector, base, corpus, documents, on_setting)
        opened.update_meta(calibration_meta(found.calibration, opened.meta(), model_digest(base)))
    _show(found, corpus)
    if json:
        print(dumps(asdict(found)))


def _show(found: BestSettings, corpus: str) -> None:
    from serving.calibration import told

    settings = table("tried", "% of base")
    for tried in found.tried:
        row(settings, told(tried.setting), f"{tried.percent_of_base:.1f}")
    show(settings, err)
    curve = table("% of base after", *(f"{n} steps" for n in _SHOWN))
    for name, points in (("built-in defaults", found.by_default), ("calibrated", found.calibrated)):
        row(curve, name, *(f"{points[n]:.1f}" for n in _SHOWN))
    show(curve, err)
    kept = found.calibration
    say(
        f"corpus {corpus} keeps: lambda' {kept.regularisation:g}, learning rate {kept.learning_rate:.2g}, rank "
        f"{kept.rank}, gain {kept.gain:.2g}: {kept.percent_of_base:.1f} % of base on {kept.passages} other documents "
        f"({kept.percent_by_default:.1f} with the built-in defaults); by gain {found.steps:.0f} steps for "
        f"{found.gain_share:.0%} of that gain",
        to=out,
    )
