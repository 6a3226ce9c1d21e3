"""The command `mayfly calibrate`: find the settings that suit a corpus, show their effect, and
store them with the corpus.

The search is in `serving.calibration`.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from contextlib import ExitStack, closing
from typing import TYPE_CHECKING, Annotated

import typer

from serving.cli.console import err, out, row, say, show, table
from serving.cli.progress import Status, progress_counter, report_interrupt
from serving.errors import SettingsError
from serving.settings.shared_options import (
    EMBEDDER,
    HOME,
    ChatTemplate,
    Corpora,
    EmbedderName,
    Home,
    Model,
    location_of,
)

if TYPE_CHECKING:
    from serving.calibration.curves import Arm
    from serving.calibration.search import BestSettings

# Numbers of steps in the tables of what is shown, and of curves.
_ARM_STEPS = (0, 2, 4, 10, 22, 50)
_CURVE_STEPS = (0, 5, 10, 20, 30, 40, 50)
# Of a strategy or an embedder that the other half of the documents would have to confirm.
_NOT_JUDGED = "not measured: no better on the others"


def calibrate(
    corpus: Annotated[str, typer.Argument(help="Corpus to calibrate.")],
    documents: Annotated[
        int,
        typer.Option(
            "--documents",
            min=4,
            help="Number of held-out documents: half to search on, half to judge.",
        ),
    ] = 48,
    forget: Annotated[
        bool, typer.Option("--forget", help="Remove the stored settings of the corpus.")
    ] = False,
    json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object as the last line.")
    ] = False,
    model: Model = None,
    chat_template: ChatTemplate = None,
    embedder: EmbedderName = EMBEDDER,
    compare_embedder: Annotated[
        list[str] | None,
        typer.Option(
            "--compare-embedder",
            help="Another embedder, as --embedder names it, to compare with the corpus's own; may "
            "be repeated.",
        ),
    ] = None,
    home: Home = HOME,
    corpora: Corpora = None,
) -> None:
    """Find the best strategy, lambda', learning rate, rank, gain and number of steps for a model
    and a corpus, and whether to show what is chosen in the prompt, and store them.

    A server takes the rank from its --corpus, and the other settings from the corpus of each
    request. Its own options override both.

    With --compare-embedder, also find whether another embedder chooses better texts. The corpus
    keeps its own: the last line says how to change it.

    Example: [cyan]mayfly calibrate nx[/]
    """
    from dataclasses import asdict
    from json import dumps

    from selection.corpus.calibration import calibration_meta, model_digest
    from selection.corpus.corpus import Corpus
    from serving.calibration.held_out import check_documents
    from serving.models.catalogue import model_folder
    from serving.settings.corpus import check_corpus
    from serving.settings.model_files import check_embedder, check_model

    location, base = location_of(home, corpora), model_folder(model)
    others = [*dict.fromkeys(compare_embedder or ())]
    check_model(base)
    if not forget:
        for each in (embedder, *others):
            check_embedder(each, base)
        check_corpus(location, corpus, embedder)
        if embedder in others:
            raise SettingsError(
                f"--compare-embedder {embedder} is the corpus's own embedder: name another one"
            )
    with closing(Corpus.open(location, corpus)) as opened:
        if forget:
            opened.update_meta(calibration_meta(None, opened.meta(), model_digest(base)))
            say(f"corpus {corpus} uses the built-in defaults again", to=out)
            return
        check_documents(opened, documents)
        with report_interrupt(lambda: f"the settings of corpus {corpus} were not changed"):
            with Status("loading the embedder and the base model"):
                from selection.embedding import load_embedder
                from selection.selector import Selector, SelectorConfig
                from serving.calibration.measurer import CurveMeasurer
                from serving.calibration.search import MEASUREMENTS, MEASUREMENTS_PER_EMBEDDER
                from serving.calibration.search import calibrate as search

                config = SelectorConfig(location, embedder, base, chat_template=chat_template)
                measurer = CurveMeasurer(Selector(config), base, corpus, documents)
            for each in others:
                with Status(f"loading the embedder {each}"):
                    loaded = load_embedder(each, base_model=base)
                what, total = f"embedding with {each}, in memory", opened.counts()[1]
                with progress_counter(what, "sequences", total) as embedded:
                    measurer.embed(loaded, embedded.advance)
            with ExitStack() as bars:
                numbers = itertools.count(1)
                most = MEASUREMENTS + MEASUREMENTS_PER_EMBEDDER * len(others)

                def on_setting(name: str, count: int) -> Callable[[], None]:
                    # Close the bar of the setting before.
                    bars.close()
                    what = f"{next(numbers)} of at most {most}, {name}"
                    done = bars.enter_context(progress_counter(what, "documents", count))
                    return lambda: done.advance()

                found = search(measurer, on_setting)
        opened.update_meta(calibration_meta(found.calibration, opened.meta(), model_digest(base)))
    _show(found, corpus)
    if others:
        _show_embedders(found, corpus, model)
    if json:
        print(dumps(asdict(found)))


def _show(found: BestSettings, corpus: str) -> None:
    from serving.calibration.setting import STRATEGY_NAMES

    settings = table("tried", "% of base")
    for trial in found.tried:
        row(settings, str(trial.setting), f"{trial.percent_of_base:.1f}")
    show(settings, err)
    halves = ("documents that search", "documents that judge")
    strategies = table("% of base after all steps", *halves)
    for each in found.strategies:
        judged = _NOT_JUDGED if each.judging is None else f"{each.judging:.1f}"
        row(strategies, STRATEGY_NAMES[each.strategy], f"{each.searching:.1f}", judged)
    show(strategies, err)
    arms = table("% of base after", *(f"{n} steps" for n in _ARM_STEPS))
    by_number = {(each.show, each.steps): each for each in found.arms}
    for number in dict.fromkeys(each.show for each in found.arms):
        cells = (_cell(by_number[number, n]) for n in _ARM_STEPS)
        row(arms, f"{number} shown", *cells)
    show(arms, err)
    curves = table("% of base after", *(f"{n} steps" for n in _CURVE_STEPS))
    for name, points in (("built-in defaults", found.by_default), ("calibrated", found.calibrated)):
        row(curves, name, *(f"{points[n]:.1f}" for n in _CURVE_STEPS))
    show(curves, err)
    best = found.calibration
    steps = "" if best.steps is None else f", at most {best.steps} steps"
    say(
        f"stored with corpus {corpus}: strategy {best.strategy}, lambda' {best.regularisation:g}, "
        f"learning rate {best.learning_rate:.2g}, rank {best.rank}, gain {best.gain:.2g}, "
        f"show {best.show}{steps}. On {best.passages} other documents, the loss is "
        f"{best.percent_of_base:.1f} % of the base model's ({best.percent_by_default:.1f} % with "
        f"the built-in defaults) after all steps; the gain stops after {found.steps:.0f} steps on "
        f"average, at {found.stopped_percent:.1f} %",
        to=out,
    )
    if found.exact_match is not None:
        before, after = found.exact_match
        say(
            f"{after:.0%} of the examples among them are answered exactly with these settings "
            f"after all {best.steps or len(found.calibrated) - 1} steps, {before:.0%} by the base "
            "model",
            to=out,
        )


def _show_embedders(found: BestSettings, corpus: str, model: str | None) -> None:
    """Compare the embedders, and say how to change to another one if it is better."""
    from dataclasses import replace

    own = found.embedders[0].embedder
    embedders = table(
        "% of base after all steps, nothing shown",
        "best settings",
        "documents that search",
        "documents that judge",
    )
    for each in found.embedders:
        judged = _NOT_JUDGED if each.judging is None else f"{each.judging:.1f}"
        setting = str(replace(each.setting, embedder=None))
        row(embedders, each.embedder, setting, f"{each.searching:.1f}", judged)
    show(embedders, err)
    better = found.better_embedder
    if better is None:
        say(
            f"corpus {corpus} keeps the embedder {own}: no other one is better on both halves of "
            "the documents",
            to=out,
        )
        return
    reembed, again = (
        f"mayfly {command} {corpus} --embedder {better}" + (f" --model {model}" if model else "")
        for command in ("corpus reembed", "calibrate")
    )
    say(
        f"the embedder {better} is better than {own} on both halves of the documents. The corpus "
        f"and the settings stored remain those of {own}. To change, run `{reembed}`, then "
        f"`{again}`, and start the server with --embedder {better}; all corpora of a server have "
        "the same embedder",
        to=out,
    )


def _cell(arm: Arm) -> str:
    """The loss, and with examples the share of exact answers."""
    exact = "" if arm.exact_match is None else f" ({arm.exact_match:.0%} exact)"
    return f"{arm.percent_of_base:.1f}{exact}"
