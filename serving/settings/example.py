"""The example of a settings file, generated from the settings, so that it is always complete.

Every setting is commented out: one that is not changed keeps its default, in later versions, too.
"""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path
from textwrap import fill
from typing import Any, get_args, get_type_hints

from serving.settings.panels import PANELS
from serving.settings.settings import Settings
from serving.settings.sources import describe_default, variable

_HEAD = """\
# Settings of `mayfly serve`. Save this as a file, remove the `#` before each setting that you
# change, and start the server with
#
#     mayfly serve --config FILE
#
# Flags and environment variables override the file. `mayfly config --config FILE` prints the
# settings in effect.
"""


def example() -> str:
    """The text of the file."""
    hints = get_type_hints(Settings, include_extras=True)
    defaults = Settings()
    grouped = {name for names in PANELS.values() for name in names}
    others = {each.name: None for each in fields(Settings) if each.name not in grouped}
    parts = [_HEAD]
    for panel, examples in (PANELS | ({"More": others} if others else {})).items():
        lines = [f"# --- {panel} ---"]
        for name, value in examples.items():
            text = get_args(hints[name])[1].help or ""
            if value is None:
                value = getattr(defaults, name)
            elif name != "home":
                text += f" Default: {describe_default(name)}."
            text += f" Variable: {variable(name)}."
            lines += ["", fill(text, 96, initial_indent="# ", subsequent_indent="# ")]
            lines.append(f"#{name.replace('_', '-')} = {_toml(value)}")
        parts.append("\n".join(lines) + "\n")
    return "\n".join(parts)


def _toml(value: Any) -> str:
    """Texts, numbers and lists of texts are written in TOML as in JSON, tables within one line."""
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{name} = {_toml(each)}" for name, each in value.items()) + " }"
    return json.dumps(str(value) if isinstance(value, Path) else value, ensure_ascii=False)
