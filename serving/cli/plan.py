"""The command `mayfly plan`: what a workload needs, from costs measured here or saved before.

`serving.capacity.profiler` measures the costs, `serving.capacity.cost_model` holds and scales them,
`serving.capacity.planner` plans with them.
"""

from __future__ import annotations

import json as json_format
from contextlib import ExitStack, closing
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from serving.cli.console import out, row, say, show, table
from serving.cli.progress import Status, report_interrupt
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
    from selection.location import Location
    from serving.capacity.cost_model import CostModel
    from serving.capacity.planner import Plan, Workload

# Ratio of model sizes beyond which a plan warns: a model of another size uses another share of the
# machine.
_MAX_SIZE_RATIO = 3.0


def plan(
    rate: Annotated[float, typer.Option("--rate", help="Requests per second.")] = 1.0,
    parameters: Annotated[
        float | None,
        typer.Option(
            "--parameters",
            help="Parameters of the model to plan for, such as 1e9.",
            show_default="the measured model's",
        ),
    ] = None,
    steps: Annotated[
        int, typer.Option("--steps", help="Training steps of each adapted request.")
    ] = 50,
    sequence_tokens: Annotated[
        int, typer.Option("--sequence-tokens", help="Tokens of a training sequence.")
    ] = 256,
    prompt_tokens: Annotated[
        int, typer.Option("--prompt-tokens", help="Tokens of a prompt.")
    ] = 256,
    answer_tokens: Annotated[
        int, typer.Option("--answer-tokens", help="Tokens of an answer.")
    ] = 128,
    corpus_sequences: Annotated[
        int, typer.Option("--corpus-sequences", help="Sequences in the corpus.")
    ] = 10_000,
    adapted: Annotated[
        float, typer.Option("--adapted", help="Share of requests that are adapted, 0 to 1.")
    ] = 1.0,
    utilisation: Annotated[
        float, typer.Option("--utilisation", help="Highest utilisation of a stage, below 1.")
    ] = 0.7,
    flops: Annotated[
        float | None,
        typer.Option(
            "--flops",
            help="Operations per second of an accelerator, in bfloat16, such as 4e14.",
            show_default="this machine's",
        ),
    ] = None,
    bandwidth: Annotated[
        float | None,
        typer.Option(
            "--bandwidth",
            help="Bytes per second of an accelerator's memory, such as 3e12.",
            show_default="this machine's",
        ),
    ] = None,
    model: Model = None,
    chat_template: ChatTemplate = None,
    corpus: Annotated[
        str | None,
        typer.Option(
            "--corpus", help="Corpus to measure the search in.", show_default="embedder only"
        ),
    ] = None,
    embedder: EmbedderName = EMBEDDER,
    url: Annotated[
        str | None,
        typer.Option(
            "--url",
            help="URL of a Mayfly server of the model, to measure its engine.",
            show_default="estimated",
        ),
    ] = None,
    key: Annotated[
        str | None,
        typer.Option(
            "--key",
            envvar=["MAYFLY_API_KEY", "OPENAI_API_KEY"],
            help="API key of the server at --url.",
        ),
    ] = None,
    measured: Annotated[
        Path | None,
        typer.Option(
            "--measured", help="Plan with the measurements in this file, written by --save."
        ),
    ] = None,
    save: Annotated[
        Path | None, typer.Option("--save", help="Save the measurements to this JSON file.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    home: Home = HOME,
    corpora: Corpora = None,
) -> None:
    """Predict what a workload needs: replicas, memory and time, from measurements on this machine.

    The machine should be idle otherwise.

    Example: [cyan]mayfly plan --rate 50 --parameters 1e9 --flops 4e14 --bandwidth 3e12[/]
    """
    from serving.adaptation.prompts import PROBE_TOKENS, SHOWN
    from serving.capacity.cost_model import Target, read_cost_model, scaled, write_cost_model
    from serving.capacity.planner import Workload, plan_for
    from serving.local.checks import check_writable

    workload = Workload(
        rate,
        steps,
        sequence_tokens,
        prompt_tokens,
        answer_tokens,
        corpus_sequences,
        adapted,
        utilisation,
    )
    target = Target(parameters, flops, bandwidth)
    if measured and (model or chat_template or corpus or url or save):
        raise typer.BadParameter(
            "leave out --model, --chat-template, --corpus, --url and --save: the file contains all "
            "measurements",
            param_hint="--measured",
        )
    if save is not None:
        if not save.absolute().parent.is_dir():
            raise typer.BadParameter(
                f"folder {save.absolute().parent} does not exist", param_hint="--save"
            )
        check_writable(save)
    cost_model = (
        read_cost_model(measured)
        if measured
        else _measure(
            workload, model, chat_template, corpus, embedder, location_of(home, corpora), url, key
        )
    )
    if save is not None:
        write_cost_model(cost_model, save)
    rank = None
    if parameters is not None:
        from adapters.model_defaults import defaults_of

        rank = defaults_of(parameters).rank
    planned = scaled(cost_model, target, rank)
    result = plan_for(workload, planned)
    without_steps = plan_for(workload.without_steps(SHOWN, PROBE_TOKENS), planned)
    lines = assumptions(cost_model, planned, utilisation)
    if workload.steps and workload.adapted:
        lines.insert(0, _without_steps(workload, without_steps))
    if json:
        document = {
            "workload": asdict(workload),
            "plan": asdict(result),
            "plan_without_steps": asdict(without_steps),
            "cost_model": asdict(planned),
            "assumptions": lines,
        }
        # Not through rich, which breaks lines.
        print(json_format.dumps(document))
        return
    _show(workload, planned, result)
    for line in lines:
        say(line, "dim", out)


def assumptions(measured: CostModel, planned: CostModel, utilisation: float) -> list[str]:
    """The assumptions behind a plan, in sentences.

    Args:
        measured: Costs as measured.
        planned: Costs scaled to the model and machine of the plan.
        utilisation: As in `serving.capacity.planner.Workload`.
    """
    where = _count(measured.cores, "core") if measured.on_cpu else "a GPU"
    lines = [f"Measured with {measured.model} ({_millions(measured)}) on {where}."]
    if measured.estimated:
        lines.append(
            f"Estimated, not measured: {', '.join(measured.estimated)}; use --url and --corpus to "
            "measure."
        )
    if planned != measured:
        to = "an accelerator in bfloat16" if planned.processor == "accelerator" else "this machine"
        lines.append(
            f"Scaled to {_millions(planned)} on {to}, assuming the same efficiency as measured: "
            f"training at {measured.training_efficiency:.0%} of the rate of matrix products."
        )
    ratio = planned.parameters / measured.parameters
    if not 1 / _MAX_SIZE_RATIO <= ratio <= _MAX_SIZE_RATIO:
        lines.append(
            f"The model is {ratio:,.3g} times as large as the measured one: a --model of similar "
            "size makes the plan more reliable."
        )
    lines.append(
        f"No stage is busier than {utilisation:.0%}. Seconds are means for random arrivals (M/M/c, "
        "with requests in a replica slowing each other down). A replica has its cores or "
        "accelerator to itself. Memory excludes Python and its libraries."
    )
    return lines


def _measure(
    workload: Workload,
    model: str | None,
    chat_template: str | None,
    corpus: str | None,
    embedder: str,
    location: Location,
    url: str | None,
    key: str | None,
) -> CostModel:
    from serving.client import Server
    from serving.models.catalogue import model_folder
    from serving.settings.corpus import check_corpus
    from serving.settings.model_files import check_embedder, check_model

    base = model_folder(model)
    check_model(base)
    check_embedder(embedder, base)
    if corpus is not None:
        check_corpus(location, corpus, embedder)
    with ExitStack() as stack:
        server = None if url is None else stack.enter_context(closing(Server(url, key)))
        if server is not None:
            server.first_model()
        stack.enter_context(report_interrupt(lambda: "no measurements were saved"))
        status = stack.enter_context(Status("measuring"))
        from adapters.model_defaults import for_model
        from selection import SelectorConfig
        from serving.capacity.profiler import ProfilerConfig, profile

        config = ProfilerConfig(
            for_model(base),
            SelectorConfig(location, embedder, base, chat_template=chat_template),
            corpus,
            server,
            workload.steps,
            workload.sequence_tokens,
            workload.prompt_tokens,
        )
        return profile(config, lambda stage: status.update(stage, force=True))


def _show(workload: Workload, cost_model: CostModel, plan: Plan) -> None:
    columns = ("replicas", "busy", "alone, s", "under load, s", "GB each", "of which")
    stages = table("stage", *columns)
    for stage in plan.stages:
        if not stage.replicas:
            row(stages, stage.stage, "none")
            continue
        row(
            stages,
            stage.stage,
            f"{stage.replicas:,}",
            f"{stage.utilisation:.0%}",
            f"{stage.seconds_alone:,.3g}",
            f"{stage.seconds:,.3g}",
            _gigabytes(sum(stage.memory.values())),
            ", ".join(f"{name} {_gigabytes(size)}" for name, size in stage.memory.items()),
        )
    show(stages)
    say(
        f"{workload.rate:g} requests per second to {_millions(cost_model)} need {_machines(plan)}, "
        f"most of them for the {plan.bottleneck}. An answer takes {plan.seconds_alone:,.3g} s "
        f"alone, {plan.seconds:,.3g} s under this load.",
        to=out,
    )


def _without_steps(workload: Workload, plan: Plan) -> str:
    return (
        f"Each adapted request takes {_count(workload.steps, 'step')}. `auto` takes none where the "
        "adapter of the corpus, or chosen text in the prompt, helps: if it did so for each "
        f"request, this would need {_machines(plan)}, and an answer would take "
        f"{plan.seconds_alone:,.3g} s alone."
    )


def _machines(plan: Plan) -> str:
    counts = {"core": plan.cores, "accelerator": plan.accelerators}
    return " and ".join(_count(number, unit) for unit, number in counts.items() if number)


def _millions(cost_model: CostModel) -> str:
    return f"{cost_model.parameters / 1e6:,.4g} M parameters"


def _gigabytes(size: float) -> str:
    return f"{size / 1e9:.2f}"


def _count(number: int, unit: str) -> str:
    return f"{number:,} {unit}" + "s" * (number != 1)
