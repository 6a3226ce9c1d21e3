"""What the benchmarks compute by themselves: how late a request was, what an operation is for, a
drawing.
"""

from __future__ import annotations

from typing import Any
from xml.etree import ElementTree

import pytest

from benchmarks.training.main import curves
from benchmarks.training.matmul_rate import kind, multiplying_parameters
from benchmarks.training.under_load import Clock


def test_the_time_of_a_step_is_the_latest_ones_however_many_took_it_together() -> None:
    clock, now = Clock(), 5.0
    for seconds in [3.0] + [0.1] * 20:  # the first is slow, and soon forgotten
        now += seconds
        for _ in range(4):
            clock.hear(now)
            now += 1e-5

    assert clock.step_seconds == pytest.approx(0.1, abs=1e-4)
    assert len(clock.all) == 20  # nothing is known of how long the first step took


@pytest.mark.parametrize(
    ("name", "callers", "expected"),
    [
        ("aten::mm", ["_Projection"], "base products"),
        ("aten::addmm", ["aten::linear", "_ProjectionBackward"], "base products"),
        ("aten::baddbmm", ["_Projection"], "LoRA"),
        ("aten::copy_", ["_ProjectionBackward"], "LoRA"),
        ("aten::bmm", ["_CausalAttention"], "attention"),
        ("aten::mm", ["_CrossEntropy"], "loss"),
        ("aten::_fused_adam_", [], "Adam"),
        ("aten::mul", ["_RmsNorm"], "element-wise"),
        ("_Projection", [], "rest"),
    ],
)
def test_an_operation_is_told_by_its_name_and_its_callers(
    name: str, callers: list[str], expected: str
) -> None:
    assert kind(name, callers) == expected


@pytest.mark.parametrize("tied", [True, False])
def test_an_embedding_counts_where_it_is_multiplied_with(tied: bool) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=100,
        hidden_size=8,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
    )
    config.tie_word_embeddings = tied
    model: Any = LlamaForCausalLM(config)  # type: ignore[no-untyped-call]

    # Either way 800 numbers make logits; norms are counted, too: they are few.
    assert multiplying_parameters(model) == 800 + 4 * 8 * 8 + 3 * 8 * 16 + 3 * 8


def test_the_drawing_shows_every_model_and_its_plain_loop() -> None:
    raced = {
        name: {
            "chosen_precision": "float32",
            "plain_tokens_per_second": (speed, speed, speed),
            "trainer": {
                "float32": {n: {"tokens_per_second": (2 * speed, 0, 0)} for n in ("1", "8")}
            },
        }
        for name, speed in (("small", 3000.0), ("large", 100.0))
    }

    drawing = ElementTree.fromstring(curves(raced))

    paths = [path.attrib for path in drawing if path.tag.endswith("path")]
    assert sum("stroke-dasharray" in path for path in paths) == 2
    assert sum(path.get("fill") == "none" for path in paths) == 2
    assert {"small", "large", "1", "8", "100", "10,000"} <= {part.text for part in drawing}
