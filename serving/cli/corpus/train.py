"""The command `mayfly corpus train`: trains the adapter of a corpus, which requests start from.

The training itself is in `serving.corpus_training`.
"""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING, Annotated

import typer

from serving.cli.console import out, say
from serving.cli.progress import Status, progress_counter, report_interrupt
from serving.settings.shared_options import (
    HOME,
    ChatTemplate,
    Corpora,
    Home,
    Model,
    location_of,
)

if TYPE_CHECKING:
    from selection.config import AdapterShape
    from selection.corpus.corpus import Corpus
    from selection.location import Location
    from serving.corpus_training.values import (
        CorpusTrainingOutcome,
        CorpusTrainingProgress,
        TrainingOptions,
    )
    from serving.workers.stages import TrainerWorker


def corpus_train(
    name: Annotated[str, typer.Argument(help="Name of the corpus.")],
    model: Model = None,
    seconds: Annotated[
        float | None,
        typer.Option("--seconds", min=1, help="Maximum seconds; another run continues from there."),
    ] = None,
    passes: Annotated[
        int | None,
        typer.Option(
            "--passes",
            min=1,
            max=20,
            help="Passes over the sequences.",
            show_default="chosen on held-out documents, up to 3",
        ),
    ] = None,
    parts: Annotated[
        int | None,
        typer.Option(
            "--parts",
            min=1,
            help="Adapters to divide the corpus into, by similar documents.",
            show_default="1, for large corpora more",
        ),
    ] = None,
    rank: Annotated[
        int | None,
        typer.Option(
            "--rank",
            min=1,
            max=512,
            help="LoRA rank, which must be the server's.",
            show_default="as calibrated, otherwise by model size",
        ),
    ] = None,
    learning_rate: Annotated[
        float | None,
        typer.Option(
            "--learning-rate",
            min=1e-9,
            help="Adam learning rate, of which two fractions are tried.",
            show_default="by model size",
        ),
    ] = None,
    lora_target: Annotated[
        list[str] | None,
        typer.Option(
            "--lora-target",
            help="Name of a projection to adapt, as the server's; may be repeated.",
            show_default="all of the decoder layers",
        ),
    ] = None,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Train anew what was learnt already.")
    ] = False,
    forget: Annotated[
        bool, typer.Option("--forget", help="Remove the adapter of the corpus.")
    ] = False,
    chat_template: ChatTemplate = None,
    json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object as the last line.")
    ] = False,
    home: Home = HOME,
    corpora: Corpora = None,
) -> None:
    """Train the adapter of a corpus, which its requests start from. An interrupted run continues
    where it stopped.

    Run it again when documents were added or removed. Example: [cyan]mayfly corpus train nx[/]
    """
    from dataclasses import asdict
    from json import dumps

    from selection.corpus.corpus import Corpus
    from selection.errors import CorpusError
    from serving.models.catalogue import model_folder

    base = model_folder(model)
    with closing(Corpus.open(location_of(home, corpora), name)) as corpus, corpus.training.lock():
        _check_servers(corpus)
        if forget:
            corpus.training.remove()
            say(f"corpus {name} has no adapter any more", to=out)
            return
        if not corpus.counts()[1]:
            raise CorpusError(
                f"corpus {name!r} is empty: add documents with `mayfly corpus add {name} PATH`"
            )
        _check(corpus, base, chat_template)
        from serving.corpus_training.values import TrainingOptions

        with Status("loading the base model"):
            trainer, shape = _load_trainer(
                location_of(home, corpora), name, base, rank, learning_rate, lora_target
            )
        outcome = _train(corpus, trainer, shape, TrainingOptions(seconds, passes, parts, fresh))
    _show(name, outcome)
    if json:
        print(dumps(asdict(outcome)))


def _check_servers(corpus: Corpus) -> None:
    """Check that no server trains a corpus.

    Raises:
        CorpusError: one does.
    """
    from selection.errors import CorpusError
    from serving.corpus_training.operation import TrainingOperation

    recorded = corpus.training.recorded()
    if recorded is not None and TrainingOperation.from_dict(recorded).is_under_way:
        raise CorpusError(
            f"corpus {corpus.name!r} is being trained by a server: wait until it has ended, or "
            "cancel it there (that a server was killed is known after 20 seconds)"
        )


def _check(corpus: Corpus, model: str, chat_template: str | None) -> None:
    """Check that adapters can be trained on a model, and that the corpus has its tokens.

    Raises:
        ModelFilesError: the model cannot be used.
        CorpusError: the corpus was made with another tokenizer or chat template.
    """
    from serving.settings.checks import check_precision
    from serving.settings.model_files import check_model, load_tokenizer

    check_model(model)
    check_precision(model)
    with Status("loading the tokenizer"):
        from selection.examples.rendering import Renderer
        from selection.examples.templates import set_chat_template
        from selection.ingest.ingest import tokenizer_digest

        tokenizer = load_tokenizer(model)
        set_chat_template(tokenizer, chat_template)
        corpus.check_tokenizer(tokenizer_digest(tokenizer), Renderer(tokenizer).digest)


def _load_trainer(
    corpora: Location,
    name: str,
    model: str,
    rank: int | None,
    learning_rate: float | None,
    lora_target: list[str] | None,
) -> tuple[TrainerWorker, AdapterShape]:
    """A trainer as that of a server that has the corpus as its default, and what it trains for."""
    from dataclasses import replace

    from adapters.model_defaults import for_model
    from serving.settings.corpus import corpus_calibration
    from serving.settings.model_files import adapter_shape
    from serving.workers.stages import TrainerWorker

    config = for_model(model, lora_target)
    if rank is None:
        calibration = corpus_calibration(corpora, name, model)
        rank = calibration.rank if calibration else config.rank
    config = replace(config, rank=rank, learning_rate=learning_rate, slots=1)
    trainer, shape = TrainerWorker(config), adapter_shape(config)
    assert shape is not None, "the model was loaded"
    return trainer, shape


def _train(
    corpus: Corpus, trainer: TrainerWorker, shape: AdapterShape, options: TrainingOptions
) -> CorpusTrainingOutcome:
    """Train the adapter in this process, and show the progress."""
    import asyncio

    from serving.corpus_training.stored import Recipe, StoredCorpus, calls_here
    from serving.corpus_training.training import CorpusTraining

    with (
        report_interrupt(
            lambda: (
                "what was learnt up to the last checkpoint was kept; run the same command again "
                "to continue"
            )
        ),
        progress_counter("training", "sequences") as counter,
    ):

        def show(progress: CorpusTrainingProgress) -> None:
            if counter.total is None:
                counter.resume(progress.done)
            counter.update(progress.done, progress.total)

        async def train() -> CorpusTrainingOutcome:
            recipe = await Recipe.of(shape, trainer)
            side = StoredCorpus(calls_here(corpus.training), recipe)
            return await CorpusTraining(trainer, side, options, show).run()

        return asyncio.run(train())


def _show(name: str, outcome: CorpusTrainingOutcome) -> None:
    from serving.corpus_training.values import End

    adapter, losses = outcome.adapter, outcome.losses
    if outcome.restarts:
        say(
            "note: documents that had been learnt were deleted during the training; their part "
            "of the adapter was trained again without them"
        )
    learnt = f"{adapter.sequences:,} sequences of {adapter.documents:,} documents"
    match outcome.end:
        case End.UNCHANGED:
            say(f"corpus {name}: nothing new to learn; its adapter has learnt {learnt}", to=out)
            return
        case End.SECONDS if adapter.learning_rate is None:
            say(
                f"corpus {name}: the time was over before the learning rate was chosen; run the "
                "same command again to continue",
                to=out,
            )
            return
        case End.SECONDS if outcome.earlier_stays:
            say(
                f"corpus {name}: the time is over; its earlier adapter, which has learnt {learnt}, "
                "stays until the new one has learnt as much; the same command continues",
                to=out,
            )
            return
        case End.SECONDS:
            say(
                f"corpus {name}: the time is over with {adapter.not_learnt:,} sequences to learn; "
                "requests start from what was learnt, and the same command continues"
            )
    line = (
        f"corpus {name}: its adapter has learnt {learnt}, in {_count(adapter.passes, 'pass')} at "
        f"learning rate {adapter.learning_rate:.2g}"
    )
    if outcome.end is End.LEARNT and adapter.not_learnt:
        line += (
            f"; {adapter.not_learnt:,} more that were added meanwhile are not learnt: run the same "
            "command again"
        )
    if adapter.parts > 1:
        line += f", in {adapter.parts} parts"
    if len(losses) > 1:
        line += (
            f"; the loss on held-out documents went from {losses[0]:.3f} to "
            f"{min(losses[1:]):.3f} nats per token ({min(losses[1:]) / losses[0]:.1%})"
        )
    say(line, to=out)
    if len(losses) > 1 and min(losses[1:]) >= losses[0]:
        say(
            "warning: the adapter does not help on documents that it has not learnt; `instant` "
            f"answers with it all the same: `mayfly corpus train {name} --forget` removes it"
        )


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}es"
