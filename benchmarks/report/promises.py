"""Promises of the server: what was promised, what a run measured, and whether it holds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from benchmarks.harness.thresholds import (
    GRACE_SECONDS,
    MAX_FAIRNESS_RATIO,
    MAX_IDLE_SHARE,
    MAX_IDLE_WORKER_SHARE,
    MAX_OVERLOAD_RATIO,
    MAX_TTFT_RATIO,
    MIN_THROUGHPUT_RATIO,
)
from benchmarks.report.formatting import Plots, Result, holds_or_not, median_cell, table

# Promise, measured value, threshold, and whether it holds.
Row = tuple[str, str, str, str]


@dataclass(frozen=True)
class Promise:
    """A promise.

    Attributes:
        name: name of its result.
        command: command that makes the result.
        rows: rows of the table, from the result.
    """

    name: str
    command: str
    rows: Callable[[Result], list[Row]]


def promises(results: Mapping[str, Result], _plots: Plots) -> list[str]:
    """One table of all results."""
    rows = [
        [*row, f"{promise.name}.json"]
        for promise in PROMISES
        if promise.name in results
        for row in promise.rows(results[promise.name])
    ]
    return table(["promise", "measured", "threshold", "", "file"], rows)


def _counts(what: str, result: Result, more: str = "") -> Row:
    """The counts of violations that every such run ends with."""
    wrong, errors, leaks = (result[kind] for kind in ("wrong", "server_errors", "leaked"))
    measured = (
        f"{result['requests']:,} requests: {wrong} wrong, {errors} server errors, {leaks} leaks"
    )
    return what, measured + more, "none", holds_or_not(not wrong + errors + leaks)


def _overhead(result: Result) -> list[Row]:
    throughput, ttft = result["throughput_ratio"], result["ttft_ratio"]
    return [
        (
            "throughput with `Compute-Budget: none`, over plain vLLM's",
            median_cell(result["throughput_ratios"]),
            f"at least {MIN_THROUGHPUT_RATIO}",
            holds_or_not(throughput >= MIN_THROUGHPUT_RATIO),
        ),
        (
            "time to the first token with `Compute-Budget: none`, over plain vLLM's",
            median_cell(result["ttft_ratios"]),
            f"at most {MAX_TTFT_RATIO}",
            holds_or_not(ttft <= MAX_TTFT_RATIO),
        ),
        _counts("every request with `Compute-Budget: none` is answered", result),
    ]


def _overload(result: Result) -> list[Row]:
    slower = result["accepted_p99_seconds"] / result["unloaded_p99_seconds"]
    times = result["offered_per_second"] / result["sustainable_per_second"]
    statuses = ", ".join(
        f"{count:,} times {status}" for status, count in result["statuses"].items()
    )
    return [
        (
            f"p99 of accepted requests at {times:.0f} times the sustainable rate, over the "
            "unloaded one",
            f"{slower:.2f} ({result['accepted_p99_seconds']:.2f} s; statuses: {statuses})",
            f"at most {MAX_OVERLOAD_RATIO:g}",
            holds_or_not(slower <= MAX_OVERLOAD_RATIO),
        ),
        _counts("excess requests are refused with a 429", result),
    ]


def _fairness(result: Result) -> list[Row]:
    alone, beside = result["alone_seconds"], result["beside_seconds"]
    large = f"{result['large']['prompts']:,} prompts"
    rows = [
        (
            f"time of a client's {what} beside one request of {large}, over that alone",
            f"{result[f'{what}_ratio']:.2f} ({1000 * beside[what]:.0f} ms, "
            f"{1000 * alone[what]:.0f} alone)",
            f"at most {MAX_FAIRNESS_RATIO:g}",
            holds_or_not(result[f"{what}_ratio"] <= MAX_FAIRNESS_RATIO),
        )
        for what in alone
    ]
    most = result["large"]["budget_seconds"] + GRACE_SECONDS
    late = f"{result['large_seconds']:.2f} s"
    return [
        *rows,
        (
            f"the adaptation to {large} ends within its budget",
            late,
            f"at most {most:g} s",
            holds_or_not(result["large_seconds"] <= most),
        ),
        _counts("every request beside it is answered", result),
    ]


def _disconnects(result: Result) -> list[Row]:
    steps, tokens = (
        result[f"{what}_after_a_leave"].get("most", 0.0) for what in ("steps", "tokens")
    )
    more = f"; at most {steps:.2f} steps and {tokens:.0f} tokens after a disconnect"
    return [_counts("work ends when the client disconnects", result, more)]


def _abuse(result: Result) -> list[Row]:
    return [_counts("malformed requests are refused without harm", result)]


def _isolation(result: Result) -> list[Row]:
    return [_counts("no key sees secrets of another", result)]


def _compat(result: Result) -> list[Row]:
    rows = []
    for client in result["results"]:
        if client["not_installed"]:
            rows.append(
                (f"{client['client']} works", "not installed", "no failure", "not measured")
            )
            continue
        found = Counter(case["outcome"] for case in client["cases"])
        measured = ", ".join(
            f"{found[outcome]} {outcome}" for outcome in ("passed", "failed", "skipped")
        )
        holds = holds_or_not(found["passed"] > 0 and not found["failed"])
        rows.append((f"{client['client']} works", measured, "no failure", holds))
    return rows


def _durability(result: Result) -> list[Row]:
    kinds = (
        "lost",
        "duplicated",
        "came_back",
        "half_written",
        "wrong_neighbours",
        "damaged_databases",
    )
    broken = {kind: result[kind] for kind in kinds}
    measured = ", ".join(f"{count} {kind.replace('_', ' ')}" for kind, count in broken.items())
    total = f", of {result['acknowledged']:,} changes and {result['kills']} kills"
    return [
        (
            "acknowledged changes of a corpus survive kill -9",
            measured + total,
            "none",
            holds_or_not(not any(broken.values())),
        )
    ]


def _postgres(result: Result) -> list[Row]:
    """Nothing, if the file has other parts of its benchmark only."""
    found = result.get("requests_under_kills")
    if found is None:
        return []
    broken = {each: found[each] for each in ("wrong", "late", "hung", "left")}
    details = ", ".join(f"{count} {each}" for each, count in broken.items())
    seconds = " and ".join(
        f"{name} {value:g} s"
        for name, value in found["recovery_seconds"].items()
        if value is not None
    )
    measured = (
        f"{found['requests']:,} requests: {details}; adapted again {found['recovered']} of "
        f"{found['injected']} times ({seconds or 'never'})"
    )
    return [
        (
            "while the database of the corpora is killed, requests are answered in time, or "
            "refused clearly",
            measured,
            "none; every time",
            holds_or_not(found["recovered"] == found["injected"] > 0 and not any(broken.values())),
        )
    ]


def _shards(result: Result) -> list[Row]:
    found = {int(count): row for count, row in result["shards"].items()}
    one, most = found[1], max(found)
    memory, search = (
        found[most][each] / one[each] for each in ("resident_bytes", "search_milliseconds")
    )
    each = "{:,.0f} MB, {:.1f} ms, recall {:.3f}"
    details = "; ".join(
        f"{count}: "
        + each.format(row["resident_bytes"] / 1e6, row["search_milliseconds"], row["recall"])
        for count, row in found.items()
    )
    return [
        (
            f"one of {most} shards of {result['sequences']:,} sequences takes less memory or time "
            "than the "
            "whole",
            f"{memory:.2f} of the memory, {search:.2f} of the time ({details})",
            "memory or time below 1",
            holds_or_not(min(memory, search) < 1),
        )
    ]


def _faults(result: Result) -> list[Row]:
    rows = []
    for kind, found in result["faults"].items():
        seconds = " and ".join(
            f"{name} {value:g} s" for name, value in found["recovery_seconds"].items()
        )
        broken = {each: found[each] for each in ("wrong_answers", "hung", "leaked")}
        details = ", ".join(f"{count} {each.replace('_', ' ')}" for each, count in broken.items())
        measured = f"{found['recovered']} of {found['injected']} ({seconds}); {details}"
        holds = holds_or_not(
            found["recovered"] == found["injected"] > 0 and not any(broken.values())
        )
        rows.append((f"the server recovers by itself: {kind}", measured, "every time", holds))
    return rows


def _idle(result: Result) -> list[Row]:
    core, worker = result["core_share"], result["worker_share"]
    largest = ", ".join(
        f"{name} {share:.1%}" for name, share in list(result["by_process"].items())[:3]
    )
    return [
        (
            f"share of one core that an idle server takes over {result['seconds']:.0f} s",
            f"{core:.1%}, vLLM's worker {worker:.1%} (most: {largest})",
            f"below {MAX_IDLE_SHARE:.0%}, vLLM's worker below {MAX_IDLE_WORKER_SHARE:.0%}",
            holds_or_not(core < MAX_IDLE_SHARE and worker < MAX_IDLE_WORKER_SHARE),
        )
    ]


# Kinds of faults, with one run each.
FAULTS = ("trainer", "hung", "selector", "engine", "core", "node", "injected")
PROMISES = (
    Promise("overhead", "make bench-overhead", _overhead),
    Promise("overload", "make overload", _overload),
    Promise("fairness", "make fairness", _fairness),
    Promise("idle", "make idle", _idle),
    # The file has the benchmark's former name.
    Promise("leavers", "make disconnects", _disconnects),
    Promise("abuse", "make abuse", _abuse),
    Promise("isolation", "make isolation", _isolation),
    Promise("compat", "make compat", _compat),
    Promise("durability", "python -m benchmarks.promises.durability --kills 200", _durability),
    Promise("postgres", "python -m benchmarks.postgres --only requests", _postgres),
    Promise("shards", "python -m benchmarks.selection.shards", _shards),
    *(Promise(f"faults-{kind}", "make faults", _faults) for kind in FAULTS),
)
