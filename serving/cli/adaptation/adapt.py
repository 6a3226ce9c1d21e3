"""The command `mayfly adapt`: train an adapter without a server, and save it."""

from __future__ import annotations

import asyncio
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from serving.cli.adaptation.examples import (
    ExamplesFile,
    ExamplesForm,
    FileExamples,
    read_examples,
)
from serving.cli.adaptation.report_line import format_prompt_loss
from serving.cli.console import out, read_input, say
from serving.cli.progress import Status, report_interrupt
from serving.settings.checks import check_settings, check_tokenizers
from serving.settings.settings import Settings
from serving.settings.shared_options import EMBEDDER, HOME, EmbedderName, Home, Model

if TYPE_CHECKING:
    from serving.adaptation.request import AdaptationRequest


def adapt(
    folder: Annotated[
        Path, typer.Option("--out", help="New or empty folder for the adapter, in PEFT's format.")
    ],
    prompt: Annotated[
        str | None,
        typer.Option(
            "--prompt",
            help="Prompt to adapt to; `-` reads it from standard input.",
            show_default="the examples",
        ),
    ] = None,
    corpus: Annotated[
        str | None,
        typer.Option("--corpus", help="Corpus to learn from.", show_default="none"),
    ] = None,
    examples: ExamplesFile = None,
    examples_as: ExamplesForm = None,
    budget: Annotated[
        str, typer.Option("--budget", help="Compute budget, such as `steps=20, seconds=5`.")
    ] = "auto",
    plan: Annotated[
        str, typer.Option("--plan", help="How the steps are made: sequential, batched or reuse.")
    ] = "sequential",
    seed: Annotated[int, typer.Option("--seed", min=0, help="Random seed of the adapter.")] = 0,
    model: Model = None,
    embedder: EmbedderName = EMBEDDER,
    home: Home = HOME,
) -> None:
    """Train the adapter that a server would train for a prompt or for a set of examples, and save
    it for PEFT or vLLM.

    Examples: [cyan]mayfly adapt --prompt "def shortest_path(" --corpus nx --out ./adapter[/] and
    [cyan]mayfly adapt --examples orders.jsonl --out ./adapter[/]
    """
    from adapters.step_plan import PLANS
    from serving.adaptation.fallback_reasons import no_step_reason
    from serving.adaptation.request_examples import parse_examples_as
    from serving.budget import parse_budget
    from serving.errors import AdaptationFailedError
    from serving.local.checks import check_writable

    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise typer.BadParameter(
            f"{folder} already exists; name a new or empty folder", param_hint="--out"
        )
    if plan not in PLANS:
        raise typer.BadParameter(
            f"unknown plan {plan!r}: use one of {', '.join(PLANS)}", param_hint="--plan"
        )
    if examples is None and (prompt is None or corpus is None):
        raise typer.BadParameter("give --prompt and --corpus, or --examples", param_hint="--corpus")
    taught = FileExamples("", (), ()) if examples is None else read_examples(examples)
    form = {} if examples_as is None else {"examples_as": examples_as}
    trained_as = parse_examples_as(form, taught.examples)
    check_writable(folder)
    settings = Settings(model=model, corpus=corpus, embedder=embedder, home=home)
    auto, server_limits = settings.budgets()
    limits = parse_budget(budget, default=auto, auto=auto, limits=server_limits)
    if limits.steps == 0:
        raise AdaptationFailedError(f"nothing to train: {no_step_reason(limits, ())}")
    check_settings(settings, is_server=False)
    if prompt == "-":
        prompt = read_input()
    with Status("loading the embedder and the base model"):
        from adapters import Trainer
        from selection import Selector
        from selection.access import OPERATOR
        from selection.errors import CorpusError
        from serving.adaptation.request import AdaptationRequest
        from serving.adaptation.starts import StartingPoint, corpus_adapter

        config = settings.config()
        check_tokenizers(config)
        selector, trainer = Selector(config.selector), Trainer(config.trainer)
    request = AdaptationRequest(
        (),
        limits,
        (),
        corpus,
        plan=plan,
        seed=seed,
        examples=taught.examples,
        texts=taught.texts,
        examples_as=trained_as,
    )
    request = _complete(request, prompt, config.engine.model, trainer.base.context)
    selection = selector.select(request.selection(corpus, OPERATOR))
    if not selection.ids:
        raise AdaptationFailedError(
            f"nothing to train on: corpus {corpus!r} is empty; "
            "add documents with `mayfly corpus add`"
        )
    start = StartingPoint()
    if selection.corpus and selection.start:
        try:
            weights = selector.start_weights(selection.corpus, selection.start)
            start = StartingPoint(selection.start, corpus_adapter(weights, config.engine.model))
        except CorpusError as problem:
            say(f"note: the training starts from a fresh adapter: {problem}")
    with (
        report_interrupt(lambda: f"no adapter was written to {folder}"),
        Status("training") as status,
    ):
        training = trainer.train(
            request.training(selection, limits.seconds, start),
            on_step=lambda step: status.update(
                f"step {step.steps} of {step.total_steps}"
                + ("" if step.probe_loss is None else f", prompt loss {step.probe_loss:.3f}")
            ),
        )
    compared = start.after(training)
    if compared is not start:
        say(f"note: the training started from a fresh adapter: {compared.reason}")
    if training.adapter is None:
        raise AdaptationFailedError(
            f"no adapter: training was stopped by '{training.stop}' before a step was complete"
        )
    training.adapter.save(folder)
    sigma, losses = selection.uncertainty[training.sequences_used], training.before_and_after
    loss = (
        f"{format_prompt_loss(*losses, training.adapter_sequences, training.sequences_used)}, "
        if losses
        else ""
    )
    started = ", started from the adapter of the corpus" if compared.found else ""
    say(
        f"{folder}: {loss}{len(training.losses)} steps in {training.seconds:.1f} s, "
        f"sigma {sigma:.3f}, stop {training.stop}{started}",
        to=out,
    )


def _complete(
    request: AdaptationRequest,
    prompt: str | None,
    model: str,
    context: int,
) -> AdaptationRequest:
    """The request with its prompt, and with its examples as training sequences; without a prompt,
    the adapter is made for the examples themselves. `context` is the model's, in tokens.
    """
    from selection.embedding import Prompt
    from serving.adaptation.candidates import CandidateRenderer
    from serving.adaptation.prompts import probe_tokens
    from serving.budget import ExampleLimits
    from serving.settings.model_files import load_tokenizer

    tokenizer = load_tokenizer(model)
    if prompt is None:
        request = replace(request, reuse="examples")
    else:
        request = replace(request, prompts=(Prompt(prompt),))
    if request.judges_prompt:
        request = replace(request, probe_tokens=probe_tokens(request.prompts, tokenizer))
    unlimited = ExampleLimits(sys.maxsize, sys.maxsize)
    renderer = CandidateRenderer(tokenizer, context, unlimited)
    return asyncio.run(renderer.render(request, is_chat=tokenizer.chat_template is not None))
