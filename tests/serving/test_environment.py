"""Commands compute with the environment of the server's processes, set before torch is loaded."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import types
from pathlib import Path

import pytest

from serving.environment import environment, hidden_packages, set_environment

_PROGRAM = """
import json, os, sys
from serving.cli import main

def print_state():
    print(json.dumps({"loaded": "torch" in sys.modules, "environment": dict(os.environ)}))

main.app = print_state
main.main()
"""


def test_the_environment_is_set_before_a_command_loads_torch() -> None:
    clean = {name: value for name, value in os.environ.items() if name not in environment(1)}
    root = Path(__file__).resolve().parents[2]

    ran = subprocess.run(
        [sys.executable, "-c", _PROGRAM],
        cwd=root,
        env=clean,
        capture_output=True,
        text=True,
        check=True,
    )
    found = json.loads(ran.stdout)

    assert not found["loaded"]
    threads = int(found["environment"]["OMP_NUM_THREADS"])
    assert 1 <= threads <= len(os.sched_getaffinity(0))
    assert environment(threads).items() <= found["environment"].items()


def test_variables_of_the_user_are_not_overridden(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in environment(1):
        monkeypatch.setenv(name, "theirs")

    set_environment(3)

    assert {os.environ[name] for name in environment(1)} == {"theirs"}


def test_hidden_packages_look_missing_within_the_block_only(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delitem(sys.modules, "sklearn", raising=False)

    with hidden_packages():
        assert importlib.util.find_spec("sklearn") is None

    assert importlib.util.find_spec("sklearn") is not None


def test_a_package_that_is_imported_already_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("sklearn")
    monkeypatch.setitem(sys.modules, "sklearn", module)

    with hidden_packages():
        assert sys.modules["sklearn"] is module

    assert sys.modules["sklearn"] is module
