"""Fairness: what another client waits for while one request with thousands of long prompts runs.

The other client searches a vector store and asks for an answer with an adapter of a few steps, in
turns, first alone and then beside one completion of 2,048 prompts of 1,000 tokens with
`Compute-Budget: seconds=5` and one token to answer. Ratios are of medians. `large_seconds` is what
the large request's own report says of its adaptation, which must end within its seconds and one
unit of work.

`wrong` are the other client's answers that are not 200, a ratio above MOST_TIMES_ALONE, and an
adaptation that ends too late.

    python -m benchmarks.promises.fairness [--requests 2048] [--json] [--out
    benchmarks/results/fairness.json]
"""

from __future__ import annotations

import random
import statistics
import threading
import time
from pathlib import Path
from typing import Any

import httpx
from transformers import AutoTokenizer

from benchmarks.harness.server import NO_KEEPING, completion, fill, home, serving, sources
from benchmarks.harness.thresholds import MOST_TIMES_ALONE, UNIT_SECONDS
from benchmarks.harness.violations import Verdict, arguments, finish
from benchmarks.quality.passages import progress
from serving.config import bundled_model

_CORPUS = "selection"
_SECONDS, _TOKENS, _STEPS = 5, 1000, 5
_LARGE_SECONDS = 3600  # for the answer to the large request
_SETTLE_SECONDS = 60.0


class Client:
    """The other client, which counts how long its searches and adaptations take."""

    def __init__(self, url: str, verdict: Verdict) -> None:
        self._http = httpx.Client(base_url=url, timeout=600, limits=NO_KEEPING)
        self._verdict = verdict
        stores = self._http.get("/v1/vector_stores").raise_for_status().json()["data"]
        self._store = next(store["id"] for store in stores if store["name"] == _CORPUS)
        self._asked = 0
        self.searches: list[tuple[float, float]] = []  # when each began, and how long it took
        self.adaptations: list[tuple[float, float]] = []

    def ask(self) -> None:
        """One search and one adaptation."""
        self._asked += 1
        query = {
            "query": f"how is document {self._asked} deleted from the store?",
            "max_num_results": 5,
        }
        self.searches.append(self._timed(f"/v1/vector_stores/{self._store}/search", query))
        body = completion(prompt=f"def delete_{self._asked}(store, name):\n")
        self.adaptations.append(
            self._timed("/v1/completions", body, {"Compute-Budget": f"steps={_STEPS}"})
        )

    def forget(self) -> None:
        """Count anew."""
        self.searches, self.adaptations = [], []

    def _timed(
        self, path: str, body: dict[str, Any], headers: dict[str, str] | None = None
    ) -> tuple[float, float]:
        begun = time.monotonic()
        reply = self._http.post(path, json=body, headers=headers)
        took = time.monotonic() - begun
        self._verdict.requests += 1
        self._verdict.check(
            reply.status_code == 200, "wrong", path, f"{reply.status_code} {reply.text[:200]}"
        )
        if headers and reply.status_code == 200:
            adapted = reply.json()["adaptation"]["adapted"]
            self._verdict.check(adapted, "wrong", "adaptation", "the other client got no adapter")
        return begun, took


def prompts(count: int, seed: int) -> list[str]:
    """Texts of some 1,000 tokens, each another."""
    tokenizer: Any = AutoTokenizer.from_pretrained(bundled_model())
    text = "\n".join(document.text for document in sources())
    tokens = tokenizer.encode(text, add_special_tokens=False)
    draw = random.Random(seed)  # noqa: S311
    starts = [draw.randrange(len(tokens) - _TOKENS) for _ in range(count)]
    # The number comes first: no two have a beginning in common, which a prefix cache would compute
    # once.
    return [
        f"{i} {tokenizer.decode(tokens[start : start + _TOKENS - 10])}"
        for i, start in enumerate(starts)
    ]


def fairness(folder: Path, options: Any, verdict: Verdict) -> dict[str, Any]:
    """Alone, beside the large request, and what became of that."""
    fill(folder, {_CORPUS: sources()})
    body = completion(prompt=prompts(options.requests, options.seed), max_tokens=1)
    with serving(folder, "--corpus", _CORPUS, "--max-model-len", "2048") as server:
        client = Client(server.url, verdict)
        workers = server.workers()
        for _ in range(3):  # warm
            client.ask()
        client.forget()
        for number in range(options.alone):
            progress(f"alone {number} of {options.alone}")
            client.ask()
        alone = _medians(client)
        client.forget()
        replies: list[httpx.Response] = []

        def send_large() -> None:
            headers = {"Compute-Budget": f"seconds={_SECONDS}"}
            replies.append(
                httpx.post(
                    f"{server.url}/v1/completions",
                    json=body,
                    headers=headers,
                    timeout=_LARGE_SECONDS,
                )
            )

        large = threading.Thread(target=send_large)
        begun = time.monotonic()
        large.start()
        time.sleep(options.ahead)
        while large.is_alive():
            progress(f"beside the large request, {time.monotonic() - begun:.0f} s")
            client.ask()
        large.join()
        took = time.monotonic() - begun
        (reply,) = replies
        if reply.status_code != 200:
            raise RuntimeError(
                f"the large request failed after {took:.1f} s: {reply.status_code} {reply.text[:500]}"
            )
        verdict.requests += 1
        beside = _medians(client)
        report = reply.json()["adaptation"]
        verdict.check_quiet(server, _SETTLE_SECONDS)
        verdict.check_workers(workers, server.workers())
    verdict.check_end(server)
    ratios = {f"{what}_ratio": round(beside[what] / alone[what], 3) for what in alone}
    large_seconds = report["spent"]["seconds"]
    for name, ratio in ratios.items():
        verdict.check(
            ratio <= MOST_TIMES_ALONE, "wrong", name, f"{ratio}, wanted at most {MOST_TIMES_ALONE}"
        )
    late = f"{large_seconds} s, wanted at most {_SECONDS + UNIT_SECONDS}"
    verdict.check(large_seconds <= _SECONDS + UNIT_SECONDS, "wrong", "large_seconds", late)
    return {
        **ratios,
        "large_seconds": large_seconds,
        "alone_seconds": alone,
        "beside_seconds": beside,
        "large": {
            "prompts": options.requests,
            "tokens": _TOKENS,
            "budget_seconds": _SECONDS,
            "answered_after_seconds": round(took, 1),
            **{key: report[key] for key in ("adapted", "reason", "stop", "targets", "seconds")},
        },
        # When each began, in seconds since the large request was sent, and how long it took.
        "searches": [
            [round(start - begun, 2), round(seconds, 3)] for start, seconds in client.searches
        ],
        "adaptations": [
            [round(start - begun, 2), round(seconds, 3)] for start, seconds in client.adaptations
        ],
    }


def _medians(client: Client) -> dict[str, float]:
    return {
        "search": round(statistics.median(seconds for _, seconds in client.searches), 4),
        "adaptation": round(statistics.median(seconds for _, seconds in client.adaptations), 4),
    }


def main() -> None:
    """Measure, print, write the JSON."""
    parser = arguments(__doc__ or "", 2048)
    parser.add_argument(
        "--alone", type=int, default=15, help="searches and adaptations before the large request"
    )
    parser.add_argument(
        "--ahead", type=float, default=0.5, help="seconds between the large request and the others"
    )
    options = parser.parse_args()
    verdict = Verdict()
    with home() as folder:
        facts = fairness(folder, options, verdict)
    finish(verdict, facts, options)


if __name__ == "__main__":
    main()
