"""A pytest plugin for openai-python's own tests: removes fields from every request.

The fields are those of COMPAT_WITHOUT. A test that uses fields which no text model supports is thus
still run with all its other fields.
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
            fields = {
                name: value for name, value in options.json_data.items() if name not in _WITHOUT
            }
            options.json_data = fields
        return prepare(self, options)

    return filtered
