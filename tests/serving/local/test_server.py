"""One machine's server: what its signals do, and what Ray is told by names that Ray must know."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest
from ray._private.node import Node as RayNode

from serving.local.server import QUIET, _Signals


@pytest.fixture
def signals() -> Iterator[_Signals]:
    earlier = {
        number: signal.getsignal(number)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    }
    # These tests may run under nohup, which has it ignored.
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield _Signals()
    for number, handler in earlier.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_the_first_signal_interrupts_the_second_hurries(
    signals: _Signals, number: signal.Signals
) -> None:
    with pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), number)

    signals.hurry()
    assert not signals.hurried.is_set()
    for _ in range(2):
        os.kill(os.getpid(), number)
        assert signals.hurried.is_set()


def test_what_outlives_its_terminal_goes_on_doing_so() -> None:
    earlier = {
        number: signal.getsignal(number)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    }
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    _Signals()

    os.kill(os.getpid(), signal.SIGHUP)

    for number, handler in earlier.items():
        signal.signal(number, handler)


def test_ray_starts_the_process_that_reads_logs_by_this_method() -> None:
    assert callable(RayNode.start_log_monitor)


def test_ray_serve_knows_what_keeps_it_quiet_by_these_names() -> None:
    code = (
        "from ray.serve._private import constants; "
        "print(constants.CONTROL_LOOP_INTERVAL_S, constants.RAY_SERVE_METRICS_EXPORT_INTERVAL_MS)"
    )

    ran = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | QUIET,
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )

    assert ran.stdout.split() == [
        value for name, value in QUIET.items() if name.startswith("RAY_SERVE_")
    ]
