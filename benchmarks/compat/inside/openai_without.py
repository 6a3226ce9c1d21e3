"""A pytest plugin for openai-python's own tests: takes the fields named in COMPAT_WITHOUT out of
every request.

So a test that asks for what no text model has is still run for all the rest of what it asks for.
"""

# mypy: ignore-errors
# (this openai is in the environment of its tests only)

from __future__ import annotations

import functools
import os

from openai import AsyncOpenAI, OpenAI

_WITHOUT = os.environ["COMPAT_WITHOUT"].split(",")


def pytest_configure() -> None:
    """Put a filter before both clients' hook for options of a request."""
    for client in (OpenAI, AsyncOpenAI):
        client._prepare_options = _filtered(client._prepare_options)


def _filtered(prepare):
    @functools.wraps(prepare)
    def filtered(self, options):
        if isinstance(options.json_data, dict):
            kept = {
                name: value for name, value in options.json_data.items() if name not in _WITHOUT
            }
            options.json_data = kept
        return prepare(self, options)

    return filtered
