"""What operations of a step are for."""

from __future__ import annotations

import pytest

from benchmarks.training.step_profile import kind_of_operation


@pytest.mark.parametrize(
    ("name", "callers", "expected"),
    [
        ("aten::mm", ["_Projection"], "base products, forward"),
        ("aten::addmm", ["aten::linear", "_ProjectionBackward"], "base products, backward"),
        ("aten::baddbmm", ["_Projection"], "LoRA"),
        ("aten::copy_", ["_ProjectionBackward"], "LoRA"),
        ("aten::bmm", ["_CausalAttention"], "attention"),
        ("aten::mm", ["_CrossEntropy"], "loss"),
        ("aten::_fused_adam_", [], "Adam"),
        ("aten::mul", ["_RmsNorm"], "element-wise"),
        ("_Projection", [], "rest"),
    ],
)
def test_an_operation_is_classified_by_its_name_and_its_callers(
    name: str, callers: list[str], expected: str
) -> None:
    assert kind_of_operation(name, callers) == expected
