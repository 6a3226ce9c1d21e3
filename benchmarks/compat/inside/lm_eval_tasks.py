"""lm-evaluation-harness with `local-completions`: choices, perplexity and generation.

The tasks are three files that are written here, so nothing is downloaded from a hub.
"""

# ruff: noqa: D103  # the tests' names describe them

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

_ROWS = [
    {"text": "for i in range(", "choices": ["10):", "purple"], "answer": 0},
    {"text": "import numpy as ", "choices": ["zebra", "np"], "answer": 1},
    {"text": "def __init__(", "choices": ["self):", "elephant"], "answer": 0},
]
_COMMON = {"dataset_path": "json", "test_split": "test", "metadata": {"version": 1.0}}
_TASKS: dict[str, dict[str, Any]] = {
    "choice": {
        "output_type": "multiple_choice",
        "doc_to_text": "{{text}}",
        "doc_to_choice": "choices",
        "doc_to_target": "answer",
        "target_delimiter": "",
        "metric_list": [{"metric": "acc"}],
    },
    "perplexity": {
        "output_type": "loglikelihood_rolling",
        "doc_to_text": "",
        "doc_to_target": "text",
        "metric_list": [{"metric": "bits_per_byte"}],
    },
    "generation": {
        "output_type": "generate_until",
        "doc_to_text": "{{text}}",
        "doc_to_target": "{{choices[answer]}}",
        "generation_kwargs": {"until": ["\n"], "max_gen_toks": 8, "do_sample": False},
        "metric_list": [{"metric": "exact_match"}],
    },
}


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, float]]:
    """Results of the harness, by task."""
    folder = tmp_path_factory.mktemp("tasks")
    rows = folder / "rows.jsonl"
    rows.write_text("".join(json.dumps(row) + "\n" for row in _ROWS))
    for name, task in _TASKS.items():
        own = {"task": f"compat_{name}", "dataset_kwargs": {"data_files": {"test": str(rows)}}}
        # JSON is also YAML.
        (folder / f"{name}.yaml").write_text(json.dumps({**_COMMON, **own, **task}))
    model = {
        "base_url": f"{os.environ['COMPAT_URL']}/v1/completions",
        "model": os.environ["COMPAT_MODEL"],
        "tokenizer_backend": "huggingface",
        "tokenizer": os.environ["COMPAT_TOKENIZER"],
        "header": {"Compute-Budget": "steps=1"},
        "max_length": 128,
        "max_retries": 1,
    }
    options = {
        "--model": "local-completions",
        "--model_args": json.dumps(model),
        "--tasks": ",".join(f"compat_{name}" for name in _TASKS),
        "--include_path": str(folder),
        "--output_path": str(folder / "out"),
    }
    process = subprocess.run(
        [
            str(Path(sys.executable).with_name("lm_eval")),
            *[word for pair in options.items() for word in pair],
        ],
        env={**os.environ, "HF_HUB_OFFLINE": "1", "HF_DATASETS_CACHE": str(folder / "cache")},
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    assert process.returncode == 0, process.stderr[-3000:]
    (file,) = (folder / "out").rglob("results*.json")
    results_by_task: dict[str, dict[str, float]] = json.loads(file.read_text())["results"]
    return results_by_task


def test_choices_are_made_by_log_probability(results: dict[str, dict[str, float]]) -> None:
    assert results["compat_choice"]["acc,none"] == 1.0  # the bundled model knows enough Python


def test_perplexity_is_that_of_a_model_of_source_code(results: dict[str, dict[str, float]]) -> None:
    assert 0 < results["compat_perplexity"]["bits_per_byte,none"] < math.log2(256)


def test_generation_ends_at_the_stop(results: dict[str, dict[str, float]]) -> None:
    assert 0 <= results["compat_generation"]["exact_match,none"] <= 1
