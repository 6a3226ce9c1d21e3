"""An example of the settings file, made from the settings themselves, so that it names each and no
other.

Every line is a comment: what is left as it is stays the default, also of a later version.
"""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path
from textwrap import fill
from typing import Any, get_args, get_type_hints

from serving.settings.settings import PANELS, Settings
from serving.settings.sources import by_default, variable

_HEAD = """\
# Settings of `mayfly serve`. Save this as a file, take the `#` off what you change, and start the server with
#
#     mayfly serve --config FILE
#
# Flags and variables of the environment go before the file. `mayfly config --config FILE` prints what holds.
"""
# Of settings whose default is decided by the model or the machine, or is nothing.
_EXAMPLES: dict[str, Any] = {
    "model": "Qwen/Qwen2.5-0.5B-Instruct",
    "served_model_name": ["my-model"],
    "max_model_len": 4096,
    "tool_call_parser": "hermes",
    "home": "~/.mayfly",
    "corpus": "nx",
    "regularisation": 0.3,
    "learning_rate": 5e-4,
    "rank": 64,
    "budget": "steps=20, seconds=5",
    "max_requests": 128,
    "max_adaptations": 16,
    "undegraded": 4,
    "allowed_host": ["mayfly.example"],
    "allowed_origin": ["https://app.example"],
    "api_key": ["mf-..."],
    "api_key_file": "/etc/mayfly/keys.toml",
    "threads": 2,
    "engine_gpus": 0.6,
    "trainer_gpus": 0.4,
    "gpu_memory_utilization": 0.55,
}


def example() -> str:
    """The file's text."""
    hints = get_type_hints(Settings, include_extras=True)
    defaults = Settings()
    grouped = {name for names in PANELS.values() for name in names}
    rest = [each.name for each in fields(Settings) if each.name not in grouped]
    parts = [_HEAD]
    for panel, names in (PANELS | ({"More": tuple(rest)} if rest else {})).items():
        lines = [f"# --- {panel} ---"]
        for name in names:
            option = get_args(hints[name])[1]
            default = getattr(defaults, name)
            value = _EXAMPLES.get(name, default)
            words = option.help or ""
            if name in _EXAMPLES and name != "home":
                words += f" Default: {by_default(name)}."
            words += f" Variable: {variable(name)}."
            lines += ["", fill(words, 96, initial_indent="# ", subsequent_indent="# ")]
            lines.append(f"#{name.replace('_', '-')} = {_toml(value)}")
        parts.append("\n".join(lines) + "\n")
    return "\n".join(parts)


def _toml(value: Any) -> str:
    """Texts, numbers and lists of texts, of which JSON's notation is also TOML's."""
    return json.dumps(str(value) if isinstance(value, Path) else value, ensure_ascii=False)
