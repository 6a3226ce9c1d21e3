"""Commands compute with the environment that the server's processes have, from before torch is
loaded.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from serving.environment import environment, set_environment

_LOOK = """
import json, os, sys
from serving.cli import main

def look():
    print(json.dumps({"loaded": "torch" in sys.modules, "environment": dict(os.environ)}))

main.app = look
main.main()
"""


def test_it_is_set_before_a_command_begins_and_torch_is_loaded() -> None:
    clean = {name: value for name, value in os.environ.items() if name not in environment(1)}
    root = Path(__file__).resolve().parents[2]

    ran = subprocess.run(
        [sys.executable, "-c", _LOOK],
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


def test_what_the_user_has_set_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in environment(1):
        monkeypatch.setenv(name, "theirs")

    set_environment(3)

    assert {os.environ[name] for name in environment(1)} == {"theirs"}
