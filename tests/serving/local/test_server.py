"""The server of one machine: its signals, and the names by which it configures Ray."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray
from ray._private.node import Node as RayNode

from serving.local.server import RAY_DEFAULTS, _Signals, ray_environment


@pytest.fixture
def signals() -> Iterator[_Signals]:
    earlier = {
        number: signal.getsignal(number)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    }
    # These tests may run under nohup, which ignores it.
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield _Signals()
    for number, handler in earlier.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_the_first_signal_interrupts_and_the_second_hurries(
    signals: _Signals, number: signal.Signals
) -> None:
    with pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), number)

    signals.hurry()
    assert not signals.hurried.is_set()
    for _ in range(2):
        os.kill(os.getpid(), number)
        assert signals.hurried.is_set()


def test_a_server_under_nohup_ignores_the_end_of_its_terminal(signals: _Signals) -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signals = _Signals()
    signals.hurry()

    os.kill(os.getpid(), signal.SIGHUP)

    assert not signals.hurried.is_set()


def test_ray_starts_the_processes_that_are_not_needed_by_these_methods() -> None:
    assert callable(RayNode.start_log_monitor)
    assert callable(RayNode.start_monitor)
    assert callable(RayNode.start_api_server)


def ray_files() -> Iterator[bytes]:
    """The contents of the installed Ray's files that read environment variables."""
    folder = Path(ray.__file__).parent
    for pattern in ("_common/**/*.py", "_private/**/*.py", "serve/_private/*.py"):
        for file in folder.glob(pattern):
            if "test" not in file.name:
                yield file.read_bytes()
    for program in ("_raylet.so", "core/src/ray/raylet/raylet", "core/src/ray/gcs/gcs_server"):
        yield (folder / program).read_bytes()


def variables_that_we_set() -> set[str]:
    """The RAY_ variables in our code, in deploy/, and in the documentation."""
    repository = Path(__file__).resolve().parents[3]
    code = "".join(file.read_text() for file in (repository / "serving").rglob("*.py"))
    files = [*(repository / "docs").glob("*.md"), *(repository / "deploy").rglob("*.y*ml")]
    files += (repository / "deploy" / "docker").iterdir()
    others = "".join(file.read_text() for file in files)
    return {*re.findall(r'"(RAY_\w+)"', code), *re.findall(r"\b(RAY_\w+)(?==|: )", others)}


def test_ray_knows_every_variable_that_we_set() -> None:
    # Ray ignores variables with unknown names, so a renamed one would go unnoticed.
    unknown = variables_that_we_set()
    assert unknown >= {*RAY_DEFAULTS, *ray_environment(range(1, 2)), "RAY_AUTH_MODE"}

    for content in ray_files():
        unknown = {name for name in unknown if name.encode() not in content}

    assert unknown == set()


def test_ray_serve_reads_these_variables_into_these_constants() -> None:
    values = RAY_DEFAULTS | ray_environment(range(20_000, 20_064))
    constants = {
        "CONTROL_LOOP_INTERVAL_S": 0.5,
        "RAY_SERVE_METRICS_EXPORT_INTERVAL_MS": 10_000,
        "RAY_SERVE_ENABLE_DIRECT_INGRESS": True,
        "RAY_SERVE_DIRECT_INGRESS_MIN_HTTP_PORT": 20_000,
        "RAY_SERVE_DIRECT_INGRESS_MAX_HTTP_PORT": 20_064,
        "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": 0,
        "RAY_SERVE_PORT_QUARANTINE_S": 1,
    }
    code = (
        "import json, sys; from ray.serve._private import constants; "
        "print(json.dumps({name: getattr(constants, name) for name in sys.argv[1:]}))"
    )

    ran = subprocess.run(
        [sys.executable, "-c", code, *constants],
        env=os.environ | values,
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )

    assert json.loads(ran.stdout) == constants
