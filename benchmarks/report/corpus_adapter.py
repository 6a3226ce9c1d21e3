"""The adapter of a corpus: gain against seconds, promises, and what each part measured."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from benchmarks.harness.thresholds import (
    MAX_BESIDE_TRAINING_RATIO,
    MAX_HOT_LOAD_RATIO,
    MAX_INCREMENT_SHARE,
    MAX_INSTANT_SECONDS_SHARE,
    MIN_INSTANT_GAIN_SHARE,
    MIN_SPEEDUP,
)
from benchmarks.report.formatting import (
    Plots,
    Result,
    holds_or_not,
    interval_cell,
    runs_of,
    start_rate_note,
    table,
    titled_table,
)

_QUALITY = "quality "


def corpus_adapter(results: Mapping[str, Result], _: Plots) -> list[str]:
    """Tables of the promises, the arms of each model, deletes and kills."""
    result = results["corpus-adapter"]
    parts: Mapping[str, Any] = result["parts"]
    lines = [
        "What a training on a whole corpus, ahead of all requests, gains and costs. All but "
        "quality and `instant` are measured with the bundled model. Above 20,000 sequences a "
        "corpus is divided by default; of such a corpus (`large`), `instant` and the steps are "
        "those of its parts in this table.",
        "",
        *table(["", "measured", "threshold", ""], _promises(result)),
    ]
    for name, part in parts.items():
        if name.startswith(_QUALITY):
            lines += _quality(name.removeprefix(_QUALITY), part)
    for part in results.get("corpus-adapter-parts", {"parts": {}})["parts"].values():
        lines += _quality("nano, also divided into parts", part)
        lines += table(
            ["corpus", "parts", "parts minus one adapter, points"],
            [
                [
                    corpus,
                    str(part["learnt"][corpus]["parts"]["adapter"]["parts"]),
                    interval_cell(difference),
                ]
                for corpus, difference in part["parts_minus_one"].items()
            ],
        )
    for model, part in results.get("corpus-scaling", {"parts": {}})["parts"].items():
        lines += _scaling(model, part)
    if "canary" in parts:
        lines += _canary(parts["canary"])
    if "kills" in parts:
        lines += _kills(parts["kills"])
    return lines + titled_table(
        "Runs",
        "The parts may come from different runs; one that has several adds up their passages, and "
        "says the minutes of the last one.",
        ["part", "command", "commit", "passages", "minutes"],
        [
            [
                name,
                f"`{run['command']}`",
                str(run["commit"])[:10],
                str(run["rows"] or ""),
                f"{part['seconds'] / 60:.1f}{' (quick)' if part['quick'] else ''}",
            ]
            for name, part in parts.items()
            for run in runs_of(part)
        ],
    )


def _promises(result: Result) -> list[list[str]]:
    instant = result["instant"]
    rows: list[tuple[str, str, str, bool]] = []
    for model, share in (instant["gain_share"] or {}).items():
        least = MIN_INSTANT_GAIN_SHARE
        gain = "no arm gains" if share is None else f"{share:.2f}"
        name = f"`instant` on {model}: share of the best arm's gain"
        rows.append((name, gain, f"at least {least:g}", share is not None and share >= least))
        share, most = instant["seconds_share"][model], MAX_INSTANT_SECONDS_SHARE
        name = f"`instant` on {model}: share of the longest SIFT's seconds"
        rows.append((name, f"{share:.4f}", f"at most {most:g}", share <= most))
    for model, gain in (result["sift_from_corpus_minus_best_single"] or {}).items():
        name = (
            "ten SIFT steps, from the corpus's adapter if it lowers the prompt's loss, on "
            f"{model}: points ahead of both alone"
        )
        rows.append((name, interval_cell(gain), "interval above 0", gain[1] > 0))
        gain = result["steps_from_corpus_minus_corpus"][model]
        name = f"ten SIFT steps after the corpus's adapter on {model}: points ahead of it"
        rows.append((name, interval_cell(gain), "interval above 0", gain[1] > 0))
    for model, ratios in (instant["first_token_ratio"] or {}).items():
        for count, ratio in ratios.items():
            name = f"`instant` on {model}: first token over a resident adapter's, {count} at once"
            most = MAX_HOT_LOAD_RATIO
            rows.append((name, f"{ratio:.2f}", f"at most {most:g}", ratio <= most))
    for model, speedup in (instant["speedup_vs_naive"] or {}).items():
        name = (
            f"`instant` on {model}: answers per second over those of a PEFT loop per request, "
            "8 at once"
        )
        rows.append((name, f"{speedup:.1f}", f"at least {MIN_SPEEDUP:g}", speedup >= MIN_SPEEDUP))
    if (share := result["increment_cost_share"]) is not None:
        name, most = "a hundredth more of documents: share of training anew", MAX_INCREMENT_SHARE
        rows.append((name, f"{share:.3f}", f"at most {most:g}", share <= most))
    for budget, ratio in (result["beside_training_ratio"] or {}).items():
        name, most = f"`{budget}` beside a training, over alone", MAX_BESIDE_TRAINING_RATIO
        rows.append((name, f"{ratio:.2f}", f"at most {most:g}", ratio <= most))
    if (known := result["canary_known"]) is not None:
        rows.append(("requests that knew what was deleted", str(known), "0", not known))
    if (kills := result["kills"]) is not None:
        kept = kills["with_checkpoint"]
        # The kept result also counts those without a checkpoint, after which a run just begins.
        resumed = min(kills["resumed"], kept)
        name = f"{kills['injected']} kills: resumed, of those after a checkpoint"
        rows.append((name, f"{resumed} of {kept}", "all", resumed == kept))
        used = kills["half_written_used"]
        rows.append(("kills: half-written adapters used", str(used), "0", not used))
    return [[*row[:3], holds_or_not(row[3])] for row in rows]


def _scaling(model: str, part: Mapping[str, Any]) -> list[str]:
    kinds = part["by_corpus"]
    return titled_table(
        f"Scaling: {model}",
        f"{len(part['rows'])} passages of other corpora, on which the factor on what an adapter "
        "adds to the base model was chosen; 0 is the base model. Bits per byte in per cent of the "
        "base model's, with 90 % intervals over documents; the difference is paired.",
        ["factor", *kinds, "all", "minus factor 1"],
        [
            [
                factor,
                *(interval_cell(found[factor]) for found in kinds.values()),
                interval_cell(every),
                interval_cell(part["minus_unscaled"][factor]),
            ]
            for factor, every in part["percent_of_base"].items()
        ],
    )


def _quality(model: str, part: Mapping[str, Any]) -> list[str]:
    size, by_corpus = part["size"], part["by_corpus"]
    offline = ", ".join(
        f"{kind} {each['corpus']['adapter']['sequences']} of {each['sequences']} sequences in "
        f"{each['corpus']['seconds']:.0f} s"
        for kind, each in part["learnt"].items()
    )
    corpora = f"{len(by_corpus)} corpora" if len(by_corpus) > 1 else "one corpus"
    return [
        *titled_table(
            f"Quality: {model}",
            f"{part['passages']} passages of {corpora}, {size['prefix']} tokens of "
            f"prompt and {size['suffix']} that are scored; {part['workers']} at once. Bits per "
            "byte in per cent of the base model's, with 90 % intervals over documents; the "
            "difference is paired. Seconds are those of selection and training, for which a "
            f"request waits. {start_rate_note(part)}`if better` starts afresh where the adapter "
            "does not lower the prompt's loss, as the server does (`instant` does not compare); "
            f"`shown` has the chosen text in the prompt, too. Learnt ahead: {offline}.",
            ["arm", "% of base", "minus SIFT 20", "seconds"],
            [
                [
                    arm,
                    interval_cell(found["percent_of_base"]),
                    interval_cell(found["minus_fresh"]),
                    f"{found['seconds']:.3f}",
                ]
                for arm, found in part["arms"].items()
            ],
        ),
        *table(
            ["corpus", "passages", *part["arms"]],
            [
                [
                    corpus,
                    str(part["passages_of"][corpus]),
                    *(f"{percent:.1f}" for percent in percents.values()),
                ]
                for corpus, percents in by_corpus.items()
            ],
        ),
    ]


def _canary(part: Mapping[str, Any]) -> list[str]:
    return titled_table(
        "Deleted documents",
        "A secret was learnt from a document that was then deleted, with requests in progress. "
        "Answers must not contain it, and its log-probability must be that of the same corpus "
        "without the document. Half of the requests came before the adapter was trained again.",
        ["the document was", "requests", "known", "known before", "largest difference, nats"],
        [
            [
                way,
                str(found["requests"]),
                str(found["known"]),
                found["known_while_learnt"],
                f"{found['largest_difference_nats']:.4f}",
            ]
            for way, found in part["by_way"].items()
        ],
    )


def _kills(part: Mapping[str, Any]) -> list[str]:
    flips = part["flips"]
    return titled_table(
        "Kills",
        "`mayfly corpus train`, ended by SIGKILL at random moments, and single flipped bits.",
        ["", "number"],
        [
            ["kills", str(part["injected"])],
            ["while something was written", str(part["in_writes"])],
            ["with a checkpoint to go on from", str(part["with_checkpoint"])],
            ["runs that ended with the adapter of one without kills", str(part["finished_equal"])],
            ["with another adapter", str(part["finished_different"])],
            ["flipped bits", str(flips["injected"])],
            ["with which a damaged adapter was used", str(flips["used"])],
        ],
    )
