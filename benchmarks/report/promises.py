"""Promises of the server: what was promised, what a run of its own found, and whether that holds."""

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
from benchmarks.report.formatting import Plots, Result, middle, table, whether

Row = tuple[str, str, str, str]  # what, measured, wanted, and whether that holds


@dataclass(frozen=True)
class Promise:
    """A result, the command that makes it, and its rows."""

    name: str
    command: str
    rows: Callable[[Result], list[Row]]


def promises(results: Mapping[str, Result], _plots: Plots) -> list[str]:
    """One table of all that was measured."""
    rows = [
        [*row, f"{promise.name}.json"]
        for promise in PROMISES
        if promise.name in results
        for row in promise.rows(results[promise.name])
    ]
    return table(["promise", "measured", "wanted", "", "file"], rows)


def _counts(what: str, result: Result, more: str = "") -> Row:
    """What every run that holds the server to its promises ends with."""
    wrong, errors, kept = (result[kind] for kind in ("wrong", "server_errors", "leaked"))
    measured = f"of {result['requests']:,} requests {wrong} wrong, {errors} errors of the server, {kept} things kept"
    return what, measured + more, "none", whether(not wrong + errors + kept)


def _overhead(result: Result) -> list[Row]:
    throughput, ttft = result["throughput_ratio"], result["ttft_ratio"]
    return [
        (
            "throughput of `Compute-Budget: none`, times plain vLLM's",
            middle(result["throughput_ratios"]),
            f"at least {MIN_THROUGHPUT_RATIO}",
            whether(throughput >= MIN_THROUGHPUT_RATIO),
        ),
        (
            "its time to the first token, times plain vLLM's",
            middle(result["ttft_ratios"]),
            f"at most {MAX_TTFT_RATIO}",
            whether(ttft <= MAX_TTFT_RATIO),
        ),
        _counts("every request of it is answered", result),
    ]


def _overload(result: Result) -> list[Row]:
    slower = result["accepted_p99_seconds"] / result["unloaded_p99_seconds"]
    times = result["offered_per_second"] / result["sustainable_per_second"]
    statuses = ", ".join(f"{count:,} of {status}" for status, count in result["statuses"].items())
    return [
        (
            f"accepted p99 at {times:.0f} times the sustainable rate, times the unloaded one",
            f"{slower:.2f} ({result['accepted_p99_seconds']:.2f} s; answers: {statuses})",
            f"at most {MAX_OVERLOAD_RATIO:g}",
            whether(slower <= MAX_OVERLOAD_RATIO),
        ),
        _counts("what is too much is refused with a 429", result),
    ]


def _fairness(result: Result) -> list[Row]:
    alone, beside = result["alone_seconds"], result["beside_seconds"]
    large = f"{result['large']['prompts']:,} prompts"
    rows = [
        (
            f"a client's {what} beside one request of {large}, times alone",
            f"{result[f'{what}_ratio']:.2f} ({1000 * beside[what]:.0f} ms, {1000 * alone[what]:.0f} alone)",
            f"at most {MAX_FAIRNESS_RATIO:g}",
            whether(result[f"{what}_ratio"] <= MAX_FAIRNESS_RATIO),
        )
        for what in alone
    ]
    most = result["large"]["budget_seconds"] + GRACE_SECONDS
    late = f"{result['large_seconds']:.2f} s"
    return [
        *rows,
        (
            f"the adaptation to {large} ends with its seconds",
            late,
            f"at most {most:g} s",
            whether(result["large_seconds"] <= most),
        ),
        _counts("every request beside it is answered", result),
    ]


def _leavers(result: Result) -> list[Row]:
    steps, tokens = (
        result[f"{what}_after_a_leave"].get("most", 0.0) for what in ("steps", "tokens")
    )
    more = f"; at most {steps:.2f} steps and {tokens:.0f} tokens after a leave"
    return [_counts("work ends with the client who leaves", result, more)]


def _abuse(result: Result) -> list[Row]:
    return [_counts("malformed requests are refused and change nothing", result)]


def _isolation(result: Result) -> list[Row]:
    return [_counts("no key sees another's secrets", result)]


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
        holds = whether(found["passed"] > 0 and not found["failed"])
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
    of = f", of {result['acknowledged']:,} changes and {result['kills']} kills"
    return [
        (
            "what a corpus has acknowledged survives kill -9",
            measured + of,
            "none",
            whether(not any(broken.values())),
        )
    ]


def _shards(result: Result) -> list[Row]:
    found = {int(count): row for count, row in result["shards"].items()}
    one, most = found[1], max(found)
    memory, search = (
        found[most][each] / one[each] for each in ("resident_bytes", "search_milliseconds")
    )
    each = "{:,.0f} MB, {:.1f} ms, recall {:.3f}"
    told = "; ".join(
        f"{count}: "
        + each.format(row["resident_bytes"] / 1e6, row["search_milliseconds"], row["recall"])
        for count, row in found.items()
    )
    return [
        (
            f"a shard of {most}, of {result['sequences']:,} sequences, takes less memory than the whole, or less time",
            f"{memory:.2f} of the memory, {search:.2f} of the time ({told})",
            "either below 1",
            whether(min(memory, search) < 1),
        )
    ]


def _faults(result: Result) -> list[Row]:
    rows = []
    for kind, found in result["faults"].items():
        seconds = " and ".join(
            f"{name} {value:g} s" for name, value in found["recovery_seconds"].items()
        )
        broken = {each: found[each] for each in ("wrong_answers", "hung", "leaked")}
        told = ", ".join(f"{count} {each.replace('_', ' ')}" for each, count in broken.items())
        measured = f"{found['recovered']} of {found['injected']} ({seconds}); {told}"
        holds = whether(found["recovered"] == found["injected"] > 0 and not any(broken.values()))
        rows.append((f"a server comes back by itself: {kind}", measured, "every time", holds))
    return rows


def _idle(result: Result) -> list[Row]:
    core, worker = result["core_share"], result["worker_share"]
    largest = ", ".join(
        f"{name} {share:.1%}" for name, share in list(result["by_process"].items())[:3]
    )
    return [
        (
            f"of one core, an idle server takes in {result['seconds']:.0f} s",
            f"{core:.1%}, vLLM's worker {worker:.1%} (most: {largest})",
            f"below {MAX_IDLE_SHARE:.0%}, vLLM's worker below {MAX_IDLE_WORKER_SHARE:.0%}",
            whether(core < MAX_IDLE_SHARE and worker < MAX_IDLE_WORKER_SHARE),
        )
    ]


FAULTS = ("trainer", "selector", "engine", "core", "node", "injected")  # one run each
PROMISES = (
    Promise("overhead", "make bench-overhead", _overhead),
    Promise("overload", "make overload", _overload),
    Promise("fairness", "make fairness", _fairness),
    Promise("idle", "make idle", _idle),
    Promise("leavers", "make leavers", _leavers),
    Promise("abuse", "make abuse", _abuse),
    Promise("isolation", "make isolation", _isolation),
    Promise("compat", "make compat", _compat),
    Promise("durability", "python -m benchmarks.promises.durability --kills 200", _durability),
    Promise("shards", "python -m benchmarks.selection.shards", _shards),
    *(Promise(f"faults-{kind}", "make faults", _faults) for kind in FAULTS),
)
