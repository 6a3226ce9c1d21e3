"""Fairness: how long another client waits while one request with thousands of prompts runs.

The other client searches a vector store and requests a completion with an adapter of a few steps,
in turns, first alone and then beside one completion of 2,048 prompts of 1,000 tokens with
`Compute-Budget: seconds=5` and one token of output. Ratios are of medians. `large_seconds` is the
time of the adaptation in the large request's report, which must not exceed its budget by more than
one unit of work.

`wrong` counts the other client's responses other than 200, a ratio above MAX_FAIRNESS_RATIO, and
an adaptation that ends too late.

    python -m benchmarks.promises.fairness [--requests 2048] [--json]
    [--out benchmarks/results/fairness.json]
"""

from __future__ import annotations

import random
import statistics
import threading
import time
from argparse import Namespace
from pathlib import Path
from typing import Any

import httpx
from transformers import AutoTokenizer

from benchmarks.harness.command_line import progress
from benchmarks.harness.server import (
    NO_KEEP_ALIVE,
    completion_body,
    create_corpora,
    mayfly_server,
    source_documents,
)
from benchmarks.harness.thresholds import GRACE_SECONDS, MAX_FAIRNESS_RATIO
from benchmarks.harness.violations import Violations, argument_parser, run_and_finish
from serving.config import bundled_model

_CORPUS = "selection"
_SECONDS, _TOKENS, _STEPS = 5, 1000, 5
_LARGE_TIMEOUT_SECONDS = 3600  # of the large request
_SETTLE_SECONDS = 60.0


class Client:
    """The other client, which times its searches and adaptations.

    Attributes:
        searches: start and duration of each search, in seconds.
        adaptations: start and duration of each completion with an adapter, in seconds.
    """

    def __init__(self, url: str, violations: Violations) -> None:
        self._http = httpx.Client(base_url=url, timeout=600, limits=NO_KEEP_ALIVE)
        self._violations = violations
        stores = self._http.get("/v1/vector_stores").raise_for_status().json()["data"]
        self._store = next(store["id"] for store in stores if store["name"] == _CORPUS)
        self._count = 0
        self.searches: list[tuple[float, float]] = []
        self.adaptations: list[tuple[float, float]] = []

    def request_once(self) -> None:
        """Run one search and one adaptation."""
        self._count += 1
        query = {
            "query": f"how is document {self._count} deleted from the store?",
            "max_num_results": 5,
        }
        self.searches.append(self._timed(f"/v1/vector_stores/{self._store}/search", query))
        body = completion_body(prompt=f"def delete_{self._count}(store, name):\n")
        self.adaptations.append(
            self._timed("/v1/completions", body, {"Compute-Budget": f"steps={_STEPS}"})
        )

    def reset(self) -> None:
        """Forget all times so far."""
        self.searches, self.adaptations = [], []

    def _timed(
        self, path: str, body: dict[str, Any], headers: dict[str, str] | None = None
    ) -> tuple[float, float]:
        started = time.monotonic()
        reply = self._http.post(path, json=body, headers=headers)
        seconds = time.monotonic() - started
        self._violations.requests += 1
        self._violations.check(
            reply.status_code == 200, "wrong", path, f"{reply.status_code} {reply.text[:200]}"
        )
        if headers and reply.status_code == 200:
            adapted = reply.json()["adaptation"]["adapted"]
            self._violations.check(
                adapted, "wrong", "adaptation", "the other client got no adapter"
            )
        return started, seconds


def prompts(count: int, seed: int) -> list[str]:
    """Different texts of about 1,000 tokens."""
    tokenizer: Any = AutoTokenizer.from_pretrained(bundled_model())
    text = "\n".join(document.text for document in source_documents())
    tokens = tokenizer.encode(text, add_special_tokens=False)
    rng = random.Random(seed)  # noqa: S311
    starts = [rng.randrange(len(tokens) - _TOKENS) for _ in range(count)]
    # The number comes first so that no two prompts share a prefix, which would be cached.
    return [
        f"{i} {tokenizer.decode(tokens[start : start + _TOKENS - 10])}"
        for i, start in enumerate(starts)
    ]


def run(folder: Path, options: Namespace, violations: Violations) -> dict[str, Any]:
    """Time the client alone and beside the large request, and check that request's report."""
    create_corpora(folder, {_CORPUS: source_documents()})
    body = completion_body(prompt=prompts(options.requests, options.seed), max_tokens=1)
    with mayfly_server(folder, "--corpus", _CORPUS, "--max-model-len", "2048") as server:
        client = Client(server.url, violations)
        workers = server.workers()
        for _ in range(3):  # warm-up
            client.request_once()
        client.reset()
        for number in range(options.alone):
            progress(f"alone {number} of {options.alone}")
            client.request_once()
        alone = _medians(client)
        client.reset()
        replies: list[httpx.Response] = []

        def send_large() -> None:
            headers = {"Compute-Budget": f"seconds={_SECONDS}"}
            replies.append(
                httpx.post(
                    f"{server.url}/v1/completions",
                    json=body,
                    headers=headers,
                    timeout=_LARGE_TIMEOUT_SECONDS,
                )
            )

        large = threading.Thread(target=send_large)
        started = time.monotonic()
        large.start()
        time.sleep(options.ahead)
        while large.is_alive():
            progress(f"beside the large request, {time.monotonic() - started:.0f} s")
            client.request_once()
        large.join()
        seconds = time.monotonic() - started
        (reply,) = replies
        if reply.status_code != 200:
            raise RuntimeError(
                f"the large request failed after {seconds:.1f} s: {reply.status_code} "
                f"{reply.text[:500]}"
            )
        violations.requests += 1
        beside = _medians(client)
        report = reply.json()["adaptation"]
        violations.check_idle(server, _SETTLE_SECONDS)
        violations.check_workers(workers, server.workers())
    violations.check_end(server)
    ratios = {f"{what}_ratio": round(beside[what] / alone[what], 3) for what in alone}
    large_seconds = report["spent"]["seconds"]
    for name, ratio in ratios.items():
        violations.check(
            ratio <= MAX_FAIRNESS_RATIO,
            "wrong",
            name,
            f"{ratio}; at most {MAX_FAIRNESS_RATIO} is allowed",
        )
    late = f"{large_seconds} s; at most {_SECONDS + GRACE_SECONDS} are allowed"
    violations.check(large_seconds <= _SECONDS + GRACE_SECONDS, "wrong", "large_seconds", late)
    return {
        **ratios,
        "large_seconds": large_seconds,
        "alone_seconds": alone,
        "beside_seconds": beside,
        "large": {
            "prompts": options.requests,
            "tokens": _TOKENS,
            "budget_seconds": _SECONDS,
            "answered_after_seconds": round(seconds, 1),
            **{key: report[key] for key in ("adapted", "reason", "stop", "targets", "seconds")},
        },
        # Start, in seconds since the large request was sent, and duration of each.
        "searches": [
            [round(start - started, 2), round(duration, 3)] for start, duration in client.searches
        ],
        "adaptations": [
            [round(start - started, 2), round(duration, 3)]
            for start, duration in client.adaptations
        ],
    }


def _medians(client: Client) -> dict[str, float]:
    return {
        "search": round(statistics.median(seconds for _, seconds in client.searches), 4),
        "adaptation": round(statistics.median(seconds for _, seconds in client.adaptations), 4),
    }


def main() -> None:
    """Measure, print, write the JSON."""
    parser = argument_parser(__doc__, 2048)
    parser.add_argument(
        "--alone", type=int, default=15, help="searches and adaptations before the large request"
    )
    parser.add_argument(
        "--ahead", type=float, default=0.5, help="seconds between the large request and the others"
    )
    run_and_finish(run, parser.parse_args())


if __name__ == "__main__":
    main()
