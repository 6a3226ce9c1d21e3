"""`mayfly demo`: what each arm answers and how it scores, and nothing is left behind."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

from tests.engine.shared_memory import left_in_shared_memory


def test_the_demonstration_compares_the_answers(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    before = set(os.listdir("/dev/shm"))
    ran = subprocess.run(
        [
            str(Path(sys.executable).with_name("mayfly")),
            "demo",
            "--json",
            "--port",
            str(port),
            "--home",
            str(tmp_path),
        ],
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    result = json.loads(ran.stdout.splitlines()[-1])
    assert result["model"] == "nano"
    assert "model: nano (smollm2 is not installed, `make install` brings it)" in ran.stderr
    assert set(result) == {
        "model",
        "base_bits_per_byte",
        "adapted_bits_per_byte",
        "steps",
        "stop",
        "sigma",
        "sources",
        "prompt_loss",
        "seconds",
        "examples",
    }
    taught = result["examples"]
    assert (taught["examples"], taught["questions"]) == (10, 8)
    assert list(taught["arms"]) == ["base", "shown", "trained"]
    assert [arm["steps"] > 0 for arm in taught["arms"].values()] == [False, False, True]
    assert all(0 <= arm["exact"] <= 8 for arm in taught["arms"].values())
    assert "a question that is not among them:" in ran.stderr
    assert 0 < result["adapted_bits_per_byte"] < result["base_bits_per_byte"] < 8
    assert result["steps"] == len(result["sigma"]) - 1 > 0
    # The report lists the sequences that the kept adapter was trained on.
    kept = result["prompt_loss"]["at"]
    assert sum(source["times"] for source in result["sources"]) == kept <= result["steps"]
    assert result["prompt_loss"]["after"] < result["prompt_loss"]["before"]
    names = {source["name"] for source in result["sources"]}
    assert all(name.startswith("vllm/reasoning/") for name in names)
    assert "vllm/reasoning/step3_reasoning_parser.py" not in names
    assert "curl -si http://127.0.0.1" in ran.stderr
    assert left_in_shared_memory(before) == set()
