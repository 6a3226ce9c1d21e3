"""The command `mayfly plan`: what a workload needs, from pieces that it measures here or that were
kept.

The model of it is `serving.capacity.planner`, the pieces are `serving.capacity.cost_model`, and who
measures them is `serving.capacity.profiler`.
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
from serving.settings.shared_options import EMBEDDER, HOME, EmbedderName, Home, Model

if TYPE_CHECKING:
    from serving.capacity.cost_model import CostModel
    from serving.capacity.planner import Plan, Workload

_AS_MEASURED = "as measured"
# Times another size: beyond it, the share of the machine that is reached is another, too.
_FAR = 3.0


def plan(
    rate: Annotated[float, typer.Option("--rate", help="Requests a second.")] = 1.0,
    parameters: Annotated[
        float | None,
        typer.Option(
            "--parameters",
            help="Parameters of the model to plan for, such as 1e9.",
            show_default=_AS_MEASURED,
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
        float, typer.Option("--adapted", help="The share of requests that are adapted.")
    ] = 1.0,
    utilisation: Annotated[
        float, typer.Option("--utilisation", help="How busy a stage may be.")
    ] = 0.7,
    flops: Annotated[
        float | None,
        typer.Option(
            "--flops",
            help="Operations a second of an accelerator, in bfloat16.",
            show_default="this machine's",
        ),
    ] = None,
    bandwidth: Annotated[
        float | None,
        typer.Option(
            "--bandwidth",
            help="Bytes a second of an accelerator's memory.",
            show_default="this machine's",
        ),
    ] = None,
    model: Model = None,
    corpus: Annotated[
        str | None,
        typer.Option(
            "--corpus", help="Corpus to measure the search in.", show_default="the embedder alone"
        ),
    ] = None,
    embedder: EmbedderName = EMBEDDER,
    url: Annotated[
        str | None,
        typer.Option(
            "--url",
            help="URL of a Mayfly that serves the model, to measure its engine.",
            show_default="estimated",
        ),
    ] = None,
    key: Annotated[
        str | None,
        typer.Option(
            "--key", envvar=["MAYFLY_API_KEY", "OPENAI_API_KEY"], help="The API key there."
        ),
    ] = None,
    measured: Annotated[
        Path | None,
        typer.Option("--measured", help="Use the measurements in this file, which --save kept."),
    ] = None,
    save: Annotated[
        Path | None, typer.Option("--save", help="Keep the measurements in this file, JSON.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    home: Home = HOME,
) -> None:
    """Say what a workload needs: replicas, memory and time, from what is measured on this machine.

    It should have nothing else to do meanwhile.

    Example: [cyan]mayfly plan --rate 50 --parameters 1e9 --flops 4e14 --bandwidth 3e12[/]
    """
    from serving.capacity.cost_model import Target, read_pieces, scaled, write_pieces
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
    if measured and (model or corpus or url or save):
        raise typer.BadParameter(
            "leave --model, --corpus, --url and --save out: all is measured",
            param_hint="--measured",
        )
    if save is not None:
        if not save.absolute().parent.is_dir():
            raise typer.BadParameter(
                f"there is no folder {save.absolute().parent}", param_hint="--save"
            )
        check_writable(save)
    pieces = (
        read_pieces(measured)
        if measured
        else _measure(workload, model, corpus, embedder, home, url, key)
    )
    if save is not None:
        write_pieces(pieces, save)
    rank = None
    if parameters is not None:
        from adapters.model_defaults import rank_of

        rank = rank_of(parameters)
    used = scaled(pieces, target, rank)
    found = plan_for(workload, used)
    lines = assumptions(pieces, used, utilisation)
    if json:
        told = {
            "workload": asdict(workload),
            "plan": asdict(found),
            "pieces": asdict(used),
            "assumptions": lines,
        }
        print(json_format.dumps(told))  # not through rich, which breaks lines
        return
    _show(workload, used, found)
    for said in lines:
        say(said, "dim", out)


def assumptions(measured: CostModel, used: CostModel, utilisation: float) -> list[str]:
    """What a plan of these pieces rests on, in sentences."""
    where = _count(measured.cores, "core") if measured.on_cpu else "a GPU"
    lines = [f"Measured with {measured.model} ({_millions(measured)}) on {where}."]
    if measured.estimated:
        lines.append(
            f"Estimated, not measured: {', '.join(measured.estimated)}; --url and --corpus measure it."
        )
    times = used.parameters / measured.parameters
    if used != measured:
        to = "an accelerator in bfloat16" if used.processor == "accelerator" else "the same machine"
        share = f"{measured.reached:.0%} of its matrix products in training"
        lines.append(
            f"Scaled to {_millions(used)} on {to}, at the shares that are reached here: {share}."
        )
    if not 1 / _FAR <= times <= _FAR:
        lines.append(
            f"That is {times:,.3g} times the size: a --model nearer to it is a firmer ground."
        )
    lines.append(
        f"No stage is busier than {utilisation:.0%}. Seconds are means with random arrivals (M/M/c, slower in company)."
        " A replica has its cores or accelerator to itself. Memory is without Python's libraries."
    )
    return lines


def _measure(
    workload: Workload,
    model: str | None,
    corpus: str | None,
    embedder: str,
    home: Path,
    url: str | None,
    key: str | None,
) -> CostModel:
    from serving.client import Server
    from serving.config import bundled_model
    from serving.settings.corpus import check_corpus
    from serving.settings.model_files import check_embedder, check_model

    base = model or bundled_model()
    check_model(base)
    check_embedder(embedder, base)
    if corpus is not None:
        check_corpus(home / "corpora", corpus, embedder)
    with ExitStack() as stack:
        server = None if url is None else stack.enter_context(closing(Server(url, key)))
        if server is not None:
            server.first_model()
        stack.enter_context(
            report_interrupt(lambda: "nothing was measured to its end, so nothing was kept")
        )
        status = stack.enter_context(Status("measuring"))
        from adapters.model_defaults import for_model
        from selection import SelectorConfig
        from serving.capacity.profiler import Asked, measure

        asked = Asked(
            for_model(base),
            SelectorConfig(home / "corpora", embedder, base),
            corpus,
            server,
            workload.steps,
            workload.sequence_tokens,
            workload.prompt_tokens,
        )
        return measure(asked, lambda stage: status.update(stage, force=True))


def _show(workload: Workload, pieces: CostModel, found: Plan) -> None:
    stages = table("stage", "replicas", "busy", "alone, s", "under load, s", "GB each", "of it")
    for need in found.needs:
        if not need.replicas:
            row(stages, need.stage, "none")
            continue
        parts = ", ".join(f"{name} {_gigabytes(size)}" for name, size in need.memory.items())
        times = (
            f"{need.seconds_alone:,.3g}",
            f"{need.seconds:,.3g}",
            _gigabytes(sum(need.memory.values())),
        )
        row(stages, need.stage, f"{need.replicas:,}", f"{need.utilisation:.0%}", *times, parts)
    show(stages)
    counts = {"core": found.cores, "accelerator": found.accelerators}
    machines = " and ".join(_count(number, what) for what, number in counts.items() if number)
    said = f"Requests at {workload.rate:g} a second to {_millions(pieces)} need {machines}, "
    said += f"most for the {found.bottleneck}. An answer takes {found.seconds_alone:,.3g} s alone, "
    said += f"{found.seconds:,.3g} s under this load."
    say(said, to=out)


def _millions(pieces: CostModel) -> str:
    return f"{pieces.parameters / 1e6:,.4g} M parameters"


def _gigabytes(size: float) -> str:
    return f"{size / 1e9:.2f}"


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}" + "s" * (number != 1)
