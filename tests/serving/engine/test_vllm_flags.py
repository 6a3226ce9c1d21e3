"""vLLM's flags: how a table becomes flags, which are refused, and what vLLM's own parser says."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

from serving.engine.vllm_flags import _OWNED, chat_template, check_flags, flags_of
from serving.errors import SettingsError

_PASSED = [
    "--max-num-batched-tokens",
    "512",
    "--no-enforce-eager",
    "-tp",
    "2",
    "--chat-template={{a}}",
]
# By what vLLM refuses: flags and settings, and what the message says.
_REFUSED = {
    "the flags after `--`": {
        "--chat-templat3 x": "unrecognized arguments: --chat-templat3; did you mean --chat-templat",
        "--max-num-batched-tokns=5": "did you mean --max-num-batched-tokens?",
        "--max-num-batched-tokens many": "argument --max-num-batched-tokens: invalid",
        "--kv-cache-dtype int1": "argument --kv-cache-dtype: invalid choice: 'int1'",
        "--compilation-config.mode": "the last one needs a value",
        "--hos 0.0.0.0": "--host",
        "-dp 2": "--data-parallel-size",
        "--enforce-eager other/model": "--model",
        "-h": "`vllm serve --help=all` prints their help",
    },
    "a setting": {"dtype=float99": "argument --dtype: invalid choice: 'float99'"},
    "a setting or a flag": {
        "--reasoning-parser nobody": "nobody",
        "--enable-log-outputs": "--enable-log-outputs requires --enable-log-requests",
        "--chat-template /no/such.jinja": "/no/such.jinja",
        "tool_call_parser=nobody": "invalid tool call parser: nobody",
    },
}
# In a process of its own, since importing vLLM changes the logging of the whole process.
_VLLM = """
import json, sys
from dataclasses import replace
from vllm.entrypoints.launchers.cli_args import make_arg_parser
from vllm.utils.argparse_utils import FlexibleArgumentParser
from serving.engine.config import EngineConfig
from serving.engine.vllm_arguments import read_arguments
from serving.errors import StartError

passed, refused = json.loads(sys.argv[1])
config = EngineConfig("model", "name", 16, ("q_proj",), dtype="float32")
actions = make_arg_parser(FlexibleArgumentParser())._actions
result = {"refused": {}, "known": [each for action in actions for each in action.option_strings]}
names = "max_num_batched_tokens enforce_eager tensor_parallel_size chat_template max_lora_rank"
for name, flags in (("default", ()), ("passed", tuple(passed))):
    arguments, engine_arguments = read_arguments(replace(config, vllm_flags=flags))
    assert engine_arguments.max_num_batched_tokens == arguments.max_num_batched_tokens
    result[name] = [vars(arguments)[each] for each in names.split()]
for each in refused:
    is_flag = each.startswith("-")
    change = {"vllm_flags": tuple(each.split())} if is_flag else dict([each.split("=")])
    try:
        read_arguments(replace(config, **change))
    except StartError as problem:
        result["refused"][each] = str(problem)
# A machine without the device that vLLM is built for.
import vllm.platforms
from vllm.platforms.interface import UnspecifiedPlatform
from serving.engine.vllm_arguments import check_arguments
unknown = replace(config, vllm_flags=("--no-such-flag",))
try:
    check_arguments(unknown)
except StartError:
    vllm.platforms._current_platform = vllm.platforms.current_platform = UnspecifiedPlatform()
    check_arguments(unknown)
    result["checked"] = True
print(json.dumps(result))
"""


@pytest.fixture(scope="module")
def vllm() -> dict[str, Any]:
    """What the installed vLLM knows, and what came of the flags above."""
    ran = subprocess.run(
        [
            sys.executable,
            "-c",
            _VLLM,
            json.dumps([_PASSED, [each for cases in _REFUSED.values() for each in cases]]),
        ],
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


def test_a_machine_without_the_engines_device_leaves_the_check_to_the_replica(
    vllm: dict[str, Any],
) -> None:
    assert vllm["checked"] is True


def test_flags_override_defaults(vllm: dict[str, Any]) -> None:
    assert vllm["default"] == [256, True, 1, None, 16]
    assert vllm["passed"] == [512, False, 2, "{{a}}", 16]


@pytest.mark.parametrize(
    ("what", "given"), [(what, given) for what, cases in _REFUSED.items() for given in cases]
)
def test_what_vllm_does_not_know_or_what_changes_ours_is_refused(
    vllm: dict[str, Any], what: str, given: str
) -> None:
    message = vllm["refused"][given]

    assert message.startswith(f"vLLM refuses {what}: ")
    assert _REFUSED[what][given] in message
