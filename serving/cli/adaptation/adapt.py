"""The command `mayfly adapt`: train an adapter without a server, and save it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from serving.cli.adaptation.report_line import format_prompt_loss
from serving.cli.console import out, read_input, say
from serving.cli.progress import Status, report_interrupt
from serving.settings.checks import check_settings, check_tokenizers
from serving.settings.settings import Settings
from serving.settings.shared_options import EMBEDDER, HOME, EmbedderName, Home, Model


def adapt(
    prompt: Annotated[
        str, typer.Option("--prompt", help="Prompt to adapt to; `-` reads it from standard input.")
    ],
    folder: Annotated[
        Path, typer.Option("--out", help="New or empty folder for the adapter, in PEFT's format.")
    ],
    corpus: Annotated[str, typer.Option("--corpus", help="Corpus to learn from.")],
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
    """Train the adapter that a server would train for a prompt, and save it for PEFT or vLLM.

    Example: [cyan]mayfly adapt --prompt "def shortest_path(" --corpus nx --out ./adapter[/]
    """
    from adapters.step_plan import PLANS
    from serving.adaptation.fallback_reasons import no_step_reason
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
    check_writable(folder)
    settings = Settings(model=model, corpus=corpus, embedder=embedder, home=home)
    auto, server_limits = settings.budgets()
    limits = parse_budget(budget, default=auto, auto=auto, limits=server_limits)
    if limits.steps == 0:
        raise AdaptationFailedError(f"nothing to train: {no_step_reason(limits, ())}")
    check_settings(settings, is_server=False)
    text = read_input() if prompt == "-" else prompt
    with Status("loading the embedder and the base model"):
        from adapters import Trainer
        from selection import Selector
        from selection.access import OPERATOR
        from selection.embedding import Prompt
        from serving.adaptation.prompts import probe_tokens
        from serving.adaptation.request import AdaptationRequest
        from serving.settings.model_files import load_tokenizer

        config = settings.config()
        check_tokenizers(config)
        selector, trainer = Selector(config.selector), Trainer(config.trainer)
    prompts = (Prompt(text),)
    request = AdaptationRequest(
        prompts,
        limits,
        (),
        corpus,
        plan=plan,
        seed=seed,
        probe_tokens=probe_tokens(prompts, load_tokenizer(config.engine.model)),
    )
    selection = selector.select(request.selection(corpus, OPERATOR))
    if not selection.ids:
        raise AdaptationFailedError(
            f"nothing to train on: corpus {corpus!r} is empty; "
            "add documents with `mayfly corpus add`"
        )
    with (
        report_interrupt(lambda: f"no adapter was written to {folder}"),
        Status("training") as status,
    ):
        training = trainer.train(
            request.training(selection, limits.seconds, start=None),
            on_step=lambda step: status.update(
                f"step {step.steps} of {step.total_steps}"
                + ("" if step.probe_loss is None else f", prompt loss {step.probe_loss:.3f}")
            ),
        )
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
    say(
        f"{folder}: {loss}{len(training.losses)} steps in {training.seconds:.1f} s, "
        f"sigma {sigma:.3f}, stop {training.stop}",
        to=out,
    )
