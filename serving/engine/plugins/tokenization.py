"""Tokenize the prompts of different requests alternately.

vLLM tokenizes all prompts in one thread in their order of arrival, so the prompts of a small
request would wait behind thousands of a large one.
"""

from __future__ import annotations

from typing import Any

from serving.engine.current_request import REQUEST
from serving.engine.fair_share import RoundRobinExecutor


def tokenize_fairly(llm: Any) -> None:
    """Replace the thread in which an `AsyncLLM` tokenizes prompts."""
    executor = llm.renderer._executor
    executor.shutdown(wait=False)
    executor._inner = RoundRobinExecutor(REQUEST.get)
