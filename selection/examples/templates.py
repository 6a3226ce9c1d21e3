"""Templates: a chat template that replaces the model's own, as vLLM's flag `--chat-template`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from selection.errors import ExampleError


def set_chat_template(tokenizer: Any, template: str | None) -> None:
    """Give a tokenizer another chat template.

    Args:
        tokenizer: the model's tokenizer.
        template: path of the template's file, or the template itself; None keeps the model's own.

    Raises:
        ExampleError: the file cannot be read.
    """
    if template is None:
        return
    if "{" in template:
        tokenizer.chat_template = template
        return
    try:
        tokenizer.chat_template = Path(template).read_text()
    except (OSError, UnicodeDecodeError) as problem:
        raise ExampleError(f"cannot read the chat template {template!r}: {problem}") from problem
