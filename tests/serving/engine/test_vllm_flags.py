"""vLLM's flags: how a table becomes flags, which are refused, and what vLLM's own parser says."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

from serving.engine.vllm_flags import _OWNED, chat_template, check_flags, flags_of
from serving.errors import SettingsError

_PASSED = ["--max-num-batched-tokens", "512", "--no-enforce-eager", "-tp", "2", "--chat-template=a"]
_REFUSED = {
    "--chat-templat3 x": "unrecognized arguments: --chat-templat3",
    "--max-num-batched-tokens many": "--max-num-batched-tokens",
    "--hos 0.0.0.0": "--host",
    "-dp 2": "--data-parallel-size",
    "--enforce-eager other/model": "--model",
}
# In a process of its own, since importing vLLM changes the logging of the whole process.
_VLLM = """
import json, sys
from vllm.entrypoints.launchers.cli_args import make_arg_parser
from vllm.utils.argparse_utils import FlexibleArgumentParser
from serving.engine.config import EngineConfig
from serving.engine.vllm_flags import parse
from serving.engine.vllm_options import vllm_arguments
from serving.errors import StartError

passed, refused = json.loads(sys.argv[1])
parser = make_arg_parser(FlexibleArgumentParser())
ours = vllm_arguments(EngineConfig("model", "name", 16, ("q_proj",), dtype="float32"), on_cpu=True)
result = {"refused": {}, "known": [each for a in parser._actions for each in a.option_strings]}
names = "max_num_batched_tokens enforce_eager tensor_parallel_size chat_template max_lora_rank"
for name, flags in (("default", []), ("passed", passed)):
    found = vars(parse(parser, ours, flags))
    result[name] = [found[each] for each in names.split()]
for flags in refused:
    try:
        parse(parser, ours, flags.split())
    except StartError as problem:
        result["refused"][flags] = str(problem)
print(json.dumps(result))
"""


@pytest.fixture(scope="module")
def vllm() -> dict[str, Any]:
    """What the installed vLLM knows, and what came of the flags above."""
    ran = subprocess.run(
        [sys.executable, "-c", _VLLM, json.dumps([_PASSED, list(_REFUSED)])],
        capture_output=True,
        text=True,
        check=True,
        timeout=180,
    )
    found: dict[str, Any] = json.loads(ran.stdout.splitlines()[-1])
    return found


@pytest.mark.parametrize(
    ("flags", "template"),
    [
        ([], None),
        (["--max-logprobs", "5"], None),
        (["--chat-template", "a.jinja"], "a.jinja"),
        (["--chat_template={{ 1 }}", "--max-logprobs=5"], "{{ 1 }}"),
        (["--chat-template=a", "--chat-template", "b"], "b"),
        (["--chat-template-content-format", "string"], None),
    ],
)
def test_the_chat_template_is_found_among_the_flags(flags: list[str], template: str | None) -> None:
    assert chat_template(flags) == template


def test_a_table_becomes_flags() -> None:
    table = {
        "chat-template": "a file",
        "enforce-eager": False,
        "enable-prefix-caching": True,
        "max-num-batched-tokens": 512,
        "max-logprobs": -1,
        "ignore-patterns": ["a", "b"],
        "compilation-config": {"mode": 0},
    }

    assert flags_of(table) == [
        "--chat-template=a file",
        "--no-enforce-eager",
        "--enable-prefix-caching",
        "--max-num-batched-tokens=512",
        "--max-logprobs=-1",
        "--ignore-patterns",
        "a",
        "b",
        '--compilation-config={"mode": 0}',
    ]


@pytest.mark.parametrize(
    ("flag", "instead"),
    [
        ("--host", "--host of Mayfly"),
        ("--max-lora-rank=8", "--rank"),
        ("--api_key=secret", "--api-key of Mayfly"),
        ("--no-enable-lora", "--rank"),
        ("--hf-overrides.a", "--model"),
        ("--scheduling-policy", "its own value"),
    ],
)
def test_flags_that_mayfly_sets_are_refused_with_what_to_use_instead(
    flag: str, instead: str
) -> None:
    with pytest.raises(SettingsError, match="cannot be passed on") as refused:
        check_flags(["--enforce-eager", flag])

    assert instead in str(refused.value)
    assert "secret" not in str(refused.value)


def test_a_word_that_is_no_flag_is_refused() -> None:
    with pytest.raises(SettingsError, match="unexpected argument 'nx'"):
        check_flags(["nx"])


def test_values_and_other_flags_are_not_refused() -> None:
    check_flags(["--chat-template", "host", "-tp", "2", "--quantization=awq"])


def test_every_owned_flag_exists_in_vllm(vllm: dict[str, Any]) -> None:
    # `--config` is read before the others.
    assert {f"--{name}" for name in _OWNED} - set(vllm["known"]) <= {"--config"}


def test_flags_override_defaults(vllm: dict[str, Any]) -> None:
    assert vllm["default"] == [256, True, 1, None, 16]
    assert vllm["passed"] == [512, False, 2, "a", 16]


@pytest.mark.parametrize("flags", _REFUSED)
def test_flags_that_vllm_does_not_know_or_that_change_ours_end_the_start(
    vllm: dict[str, Any], flags: str
) -> None:
    message = vllm["refused"][flags]

    assert message.startswith("vLLM refuses the flags after `--`")
    assert _REFUSED[flags] in message
