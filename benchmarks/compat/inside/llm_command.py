"""The command `llm` with this server's models in its extra-openai-models.yaml."""

# ruff: noqa: D103  # the tests' names describe them

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

_MODELS = """
- model_id: mayfly
  model_name: {model}
  api_base: "{url}/v1"
  api_key_name: mayfly
  supports_schema: true
  headers:
    Compute-Budget: steps=1
- model_id: mayfly-completion
  model_name: {model}
  api_base: "{url}/v1"
  api_key_name: mayfly
  completion: true
"""


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """`llm`'s folder for settings and logs."""
    models = _MODELS.format(model=os.environ["COMPAT_MODEL"], url=os.environ["COMPAT_URL"])
    (tmp_path / "extra-openai-models.yaml").write_text(models)
    (tmp_path / "keys.json").write_text('{"mayfly": "none"}')
    return tmp_path


def _llm(home: Path, *arguments: str) -> str:
    process = subprocess.run(
        [str(Path(sys.executable).with_name("llm")), *arguments],
        env={**os.environ, "LLM_USER_PATH": str(home)},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert process.returncode == 0, process.stderr
    return process.stdout


def _logged(home: Path) -> Any:
    return json.loads(_llm(home, "logs", "--json", "-n", "1"))[0]


def test_the_models_are_listed(home: Path) -> None:
    assert "mayfly-completion" in _llm(home, "models", "list")


def test_a_streamed_answer_is_printed(home: Path) -> None:
    assert _llm(home, "-m", "mayfly", "def area(radius):", "-o", "max_tokens", "8").strip()


def test_a_whole_answer_is_printed_and_logged_with_its_report(home: Path) -> None:
    output = _llm(home, "-m", "mayfly", "--no-stream", "def area(radius):", "-o", "max_tokens", "8")

    logged = _logged(home)
    assert logged["response"].strip() == output.strip() != ""
    assert logged["output_tokens"] == 8
    assert logged["response_json"]["adaptation"]["spent"]["steps"] == 1


def test_a_conversation_goes_on(home: Path) -> None:
    _llm(home, "-m", "mayfly", "def area(radius):", "-o", "max_tokens", "8")

    assert _llm(home, "-c", "def volume(radius):", "-o", "max_tokens", "8").strip()


def test_a_completion_model_answers(home: Path) -> None:
    assert _llm(
        home, "-m", "mayfly-completion", "def area(radius):", "-o", "max_tokens", "8"
    ).strip()


def test_a_schema_is_kept_to(home: Path) -> None:
    schema = {"type": "object", "properties": {"big": {"type": "boolean"}}, "required": ["big"]}
    # The bundled model would fill a JSON object with spaces.
    options = ["--no-stream", "-o", "frequency_penalty", "2", "-o", "max_tokens", "64"]

    output = _llm(home, "-m", "mayfly", "--schema", json.dumps(schema), *options, "Is it big?")

    assert isinstance(json.loads(output)["big"], bool)
