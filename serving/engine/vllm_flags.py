"""Flags of `vllm serve` that the user passes on to vLLM.

Flags that Mayfly sets itself are refused by name. Whether vLLM knows the others is only known where
vLLM is imported, which takes seconds (`serving.engine.vllm_arguments`).
"""

from __future__ import annotations

import json
from argparse import ArgumentParser, Namespace
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from itertools import zip_longest
from typing import Any, NoReturn

from serving.errors import SettingsError, StartError

_ONE_MODEL = "the engine and the trainer load the same model: use --model with a folder"
_LORA = "it follows from --rank, --max-adaptations and the model"
_HTTP = "Mayfly answers HTTP itself"
_REPLICAS = "one engine is one process group: scale with replicas on a cluster"
_FIXED = "Mayfly relies on its own value"
_PASSED_ON = "the flags after `--`"
# Flags that Mayfly sets, and what to use instead or why there is nothing.
_OWNED = {
    "model": "use --model of Mayfly",
    "served-model-name": "use --served-model-name of Mayfly",
    "dtype": "use --dtype of Mayfly",
    "max-model-len": "use --max-model-len of Mayfly",
    "gpu-memory-utilization": "use --gpu-memory-utilization of Mayfly",
    "tool-call-parser": "use --tool-call-parser of Mayfly",
    "enable-auto-tool-choice": "use --tool-call-parser of Mayfly",
    "host": "use --host of Mayfly",
    "port": "use --port of Mayfly",
    "api-key": "use --api-key of Mayfly",
    "allowed-origins": "use --allowed-origin of Mayfly",
    "config": "use --config of Mayfly",
    "hf-token": "set HF_TOKEN in the environment",
    **dict.fromkeys(
        (
            "tokenizer",
            "tokenizer-mode",
            "tokenizer-revision",
            "skip-tokenizer-init",
            "revision",
            "code-revision",
            "hf-config-path",
            "hf-overrides",
            "trust-remote-code",
        ),
        _ONE_MODEL,
    ),
    **dict.fromkeys(
        (
            "enable-lora",
            "lora-modules",
            "lora-target-modules",
            "max-loras",
            "max-lora-rank",
            "max-cpu-loras",
        ),
        _LORA,
    ),
    **dict.fromkeys(
        (
            "uds",
            "root-path",
            "middleware",
            "allow-credentials",
            "allowed-methods",
            "allowed-headers",
            "ssl-keyfile",
            "ssl-certfile",
            "ssl-ca-certs",
            "ssl-cert-reqs",
            "api-server-count",
            "headless",
        ),
        _HTTP,
    ),
    **dict.fromkeys(("data-parallel-size", "pipeline-parallel-size"), _REPLICAS),
    **dict.fromkeys(("load-format", "scheduling-policy", "max-num-seqs"), _FIXED),
}


def flags_of(table: Mapping[str, Any]) -> list[str]:
    """The flags of a table such as `[vllm]` in a settings file.

    Args:
        table: values by the names of flags, without the two hyphens: true and false for `--name`
            and `--no-name`, a list for several values, a table for a flag that takes JSON.
    """
    flags = []
    for name, value in table.items():
        if isinstance(value, bool):
            flags.append(f"--{name}" if value else f"--no-{name}")
            continue
        values = value if isinstance(value, list) else [value]
        texts = [json.dumps(each) if isinstance(each, dict) else str(each) for each in values]
        # With "=", a value may begin with a hyphen.
        flags += [f"--{name}={texts[0]}"] if len(texts) == 1 else [f"--{name}", *texts]
    return flags


def chat_template(flags: Sequence[str]) -> str | None:
    """The chat template that the flags set: a file, or the template itself; None for the model's
    own.
    """
    template = None
    for flag, following in zip_longest(flags, flags[1:]):
        name, _, value = flag.partition("=")
        if name.replace("_", "-") == "--chat-template":
            template = value or following
    return template


def check_flags(flags: Sequence[str]) -> None:
    """Check, without vLLM, that no flag is one that Mayfly sets.

    Raises:
        SettingsError: one is, or the first is not a flag.
    """
    if flags and not flags[0].startswith("-"):
        raise SettingsError(
            f"unexpected argument {flags[0]!r}: after `--` there may be flags of vLLM, which begin "
            "with a hyphen"
        )
    for flag in flags:
        name = flag.split("=", 1)[0].split(".", 1)[0].removeprefix("--").replace("_", "-")
        reason = _OWNED.get(name) or _OWNED.get(name.removeprefix("no-"))
        if flag.startswith("--") and reason:
            raise SettingsError(f"vLLM's flag --{name} cannot be passed on: {reason}")


def parse(parser: ArgumentParser, ours: Sequence[str], flags: Sequence[str]) -> Namespace:
    """vLLM's arguments.

    Args:
        parser: vLLM's own.
        ours: arguments that Mayfly sets.
        flags: the user's flags, which override those of ours that Mayfly does not rely on.

    Raises:
        StartError: vLLM does not know a flag or a value, or a flag is another spelling of one that
            Mayfly sets.
    """

    expected = _parsed(parser, ours, "a setting")
    found = _parsed(parser, [*ours, *flags], _PASSED_ON)
    # Abbreviations, short flags, and a word without a flag, which vLLM takes for the model.
    names = {"model_tag"} | {
        action.dest
        for action in parser._actions
        if any(each.removeprefix("--") in _OWNED for each in action.option_strings)
    }
    for name in sorted(names):
        if getattr(found, name, None) != getattr(expected, name, None):
            reason = _OWNED.get(name.replace("_", "-"), _ONE_MODEL)
            option = f"--{name.replace('_', '-')}"
            raise StartError(f"vLLM refuses {_PASSED_ON}: they would change {option}: {reason}")
    return found


def _parsed(parser: ArgumentParser, arguments: Sequence[str], what: str) -> Namespace:
    def fail(message: str) -> NoReturn:
        raise StartError(f"vLLM refuses {what}: {message}{_similar_flags(parser, message)}")

    def print_help(file: object = None) -> NoReturn:
        fail("`vllm serve --help=all` prints their help")

    parser.error, parser.print_help = fail, print_help  # type: ignore[method-assign]
    try:
        return parser.parse_args(list(arguments))
    except (ValueError, TypeError) as problem:
        fail(str(problem))
    # vLLM does not expect this of `--name.key`.
    except IndexError:
        fail("the last one needs a value")


def _similar_flags(parser: ArgumentParser, message: str) -> str:
    """The flags that were probably meant, if the message is about flags that there are not."""
    if not message.startswith("unrecognized arguments: "):
        return ""
    known = [each for action in parser._actions for each in action.option_strings]
    names = [word.split("=")[0] for word in message.split() if word.startswith("--")]
    similar = [each for name in names for each in get_close_matches(name, known, 1, 0.8)]
    return f"; did you mean {', '.join(similar)}?" if similar else ""
