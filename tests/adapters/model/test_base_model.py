"""The base model: rows in a batch have the losses they have alone, of their scored tokens, for any
output layer.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from adapters.model.base_model import PRECISIONS, BaseModel
from adapters.model.row import Row, Spans
from tests.adapters.peft_reference import Base, load

_SHAPE: dict[str, Any] = {
    "vocab_size": 128,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "initializer_range": 0.2,
    "pad_token_id": None,
    "bos_token_id": None,
    "eos_token_id": None,
}
_SEQUENCES = [[(11 * i + 5 * j) % 97 for j in range(2 + 9 * i)] for i in range(6)]
_ROWS = [Row.of(sequence) for sequence in _SEQUENCES]


@pytest.fixture(scope="module")
def model(base: Base) -> BaseModel:
    """Each kind of model in float32."""
    return BaseModel(base.folder, precision="float32")


@torch.no_grad()
def plain_nats(model: Any, row: Row) -> float:
    """The mean nats of a row's scored tokens, by transformers."""
    log_probabilities = model(torch.tensor([row.tokens])).logits[0].log_softmax(-1)
    nats = [
        -float(log_probabilities[i - 1, row.tokens[i]])
        for start, end in row.scored
        for i in range(start, end)
    ]
    return sum(nats) / len(nats)


def unusual_model(kind: str, folder: Path) -> str:
    """The folder of a tiny model that does more to its last hidden states than multiply, or
    multiplies otherwise.
    """
    import transformers

    torch.manual_seed(5)
    options: dict[str, dict[str, Any]] = {
        "Gemma2": {"final_logit_softcapping": 2.0, "head_dim": 8, "sliding_window": 16},
        "Granite": {"logits_scaling": 4.0},
        "Cohere": {"logit_scale": 0.3},
        "Phi": {},
        "Mistral": {"sliding_window": 8},
        "GPTNeoX": {},
    }
    config = getattr(transformers, f"{kind}Config")(**_SHAPE, **options[kind])
    own = getattr(transformers, f"{kind}ForCausalLM")(config)
    # Phi's output layer has a bias.
    if kind == "Phi":
        torch.nn.init.normal_(own.lm_head.bias)
    own.save_pretrained(folder)
    return str(folder)


def test_each_row_gives_what_transformers_gives_it_alone(base: Base, model: BaseModel) -> None:
    plain = load(base.folder)

    with torch.no_grad():
        together = model.losses(_ROWS).tolist()

    assert together == pytest.approx([plain_nats(plain, row) for row in _ROWS], rel=1e-5)


@settings(
    deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    st.lists(st.lists(st.integers(0, 127), min_size=2, max_size=64), min_size=1, max_size=6),
    st.randoms(),
)
def test_rows_give_the_same_in_any_order_and_batch(
    model: BaseModel, rows: list[list[int]], random_: Any
) -> None:
    order = list(range(len(rows)))
    random_.shuffle(order)

    with torch.no_grad():
        alone = [float(model.losses([Row.of(row)])) for row in rows]
        together = model.losses([Row.of(rows[m]) for m in order]).tolist()

    assert together == pytest.approx([alone[m] for m in order], rel=1e-4)


_SPANS: list[Spans] = [((46, 47),), ((1, 2), (20, 30)), ((7, 47),), ((3, 4), (4, 9), (46, 47))]


def test_only_scored_tokens_count(base: Base, model: BaseModel) -> None:
    rows = [Row.of(_SEQUENCES[5], spans) for spans in _SPANS] + _ROWS

    with torch.no_grad():
        found = model.losses(rows).tolist()

    plain = load(base.folder)
    assert found == pytest.approx([plain_nats(plain, row) for row in rows], rel=1e-5)


@pytest.mark.parametrize("kind", ["linear", "Granite"])
def test_hidden_states_that_predict_no_scored_token_get_no_gradient(
    kind: str, tiny_llama: str, tmp_path: Path
) -> None:
    # Arrange: Granite's losses are computed from whole logits.
    folder = tiny_llama if kind == "linear" else unusual_model(kind, tmp_path / kind)
    model = BaseModel(folder, precision="float32")
    hidden: list[torch.Tensor] = []
    hook = model.model.base_model.register_forward_hook(
        lambda _, __, output: hidden.append(output.last_hidden_state.requires_grad_())
    )
    rows = [Row.of(_SEQUENCES[5], spans) for spans in _SPANS] + _ROWS

    # Act.
    try:
        (gradient_MSH,) = torch.autograd.grad(model.losses(rows).sum(), hidden)
    finally:
        hook.remove()

    # Assert.
    expected_MS = torch.zeros(gradient_MSH.shape[:2], dtype=torch.bool)
    for m, row in enumerate(rows):
        for start, end in row.scored:
            expected_MS[m, start - 1 : end - 1] = True
    assert torch.equal(gradient_MSH.ne(0).any(-1), expected_MS)


@settings(
    deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.lists(st.integers(0, 127), min_size=2, max_size=64), st.data())
def test_nats_add_up_over_any_parts_of_a_row(
    model: BaseModel, tokens: list[int], data: st.DataObject
) -> None:
    ends = data.draw(st.sets(st.integers(1, len(tokens) - 1)))
    cuts = sorted({1, *ends, len(tokens)})
    parts = [(cuts[i], cuts[i + 1]) for i in range(len(cuts) - 1)]
    chosen = tuple(part for part in parts if data.draw(st.booleans())) or tuple(parts)

    def nats(row: Row) -> float:
        return float(model.losses([row])) * row.scored_tokens

    with torch.no_grad():
        each = {part: nats(Row.of(tokens, (part,))) for part in parts}
        some, every, whole = (nats(Row.of(tokens, spans)) for spans in (chosen, tuple(parts), None))

    assert some == pytest.approx(sum(each[part] for part in chosen), rel=1e-4)
    assert every == whole
    assert whole == pytest.approx(sum(each.values()), rel=1e-4)


@pytest.mark.parametrize("kind", ["Gemma2", "Granite", "Cohere", "Phi", "Mistral", "GPTNeoX"])
def test_unusual_output_layers_give_transformers_losses(
    kind: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    # Arrange: soft-capped and scaled logits are not linear; biases and sliding windows are allowed.
    folder = unusual_model(kind, tmp_path / kind)
    with caplog.at_level(logging.WARNING):
        model = BaseModel(folder, precision="float32")
    plain = load(folder)

    # Act: losses and gradients, here and in transformers.
    found_M, found = with_gradient(model.model, lambda: model.losses(_ROWS))
    expected_M, expected = with_gradient(
        plain, lambda: torch.stack([plain_loss(plain, row) for row in _ROWS])
    )

    # Assert.
    assert found_M.tolist() == pytest.approx(expected_M.tolist(), rel=1e-4)
    assert (found - expected).norm() <= 1e-3 * expected.norm()
    whole = [record for record in caplog.records if "computed from whole logits" in record.message]
    assert len(whole) == (kind in {"Gemma2", "Granite", "Cohere"})


def plain_loss(model: Any, row: Row) -> torch.Tensor:
    ids = torch.tensor([row.tokens])
    loss: torch.Tensor = model(ids, labels=ids).loss
    return loss


def with_gradient(model: Any, losses: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Losses, and the gradient of their sum with respect to the table of embeddings."""
    table = model.get_input_embeddings().weight
    table.requires_grad_(True)
    losses_M = losses()
    (gradient,) = torch.autograd.grad(losses_M.sum(), table)
    table.requires_grad_(False)
    return losses_M.detach(), gradient


def test_attributes_describe_the_model(base: Base, model: BaseModel) -> None:
    plain = load(base.folder)

    assert (model.vocabulary, model.context) == (128, 64)
    assert model.parameters == sum(parameter.numel() for parameter in plain.parameters())
    assert model.device in {"cpu", "cuda"}
    assert not any(parameter.requires_grad for parameter in model.model.parameters())


def test_bfloat16_losses_are_close(base: Base, model: BaseModel) -> None:
    rough = BaseModel(base.folder, precision="bfloat16")

    with torch.no_grad():
        exact_M, found_M = model.losses(_ROWS), rough.losses(_ROWS)

    assert found_M.dtype == torch.float32
    torch.testing.assert_close(found_M, exact_M, rtol=0.1, atol=0.1)
    assert not torch.equal(found_M, exact_M)


def test_a_bfloat16_model_changes_no_global_settings(base: Base) -> None:
    settings_before = (torch.get_default_dtype(), torch.backends.mkldnn.matmul.fp32_precision)  # type: ignore[attr-defined]
    matrix = torch.linspace(0, 1, 64 * 64).view(64, 64)
    before = matrix @ matrix

    BaseModel(base.folder, precision="bfloat16").losses(_ROWS)

    precision = torch.backends.mkldnn.matmul.fp32_precision  # type: ignore[attr-defined]
    assert (torch.get_default_dtype(), precision) == settings_before
    assert torch.equal(matrix @ matrix, before)


def test_auto_resolves_to_a_precision(tiny_llama: str) -> None:
    precision = BaseModel(tiny_llama).precision

    assert precision in PRECISIONS
    assert precision != "auto"
    assert BaseModel(tiny_llama, precision="float32").precision == "float32"


@pytest.mark.parametrize("precision", ["", "float16", "bf16"])
def test_an_unknown_precision_is_refused(tiny_llama: str, precision: str) -> None:
    with pytest.raises(
        ValueError, match=f"unknown precision '{precision}': one of auto, float32, bfloat16"
    ):
        BaseModel(tiny_llama, precision=precision)


def test_a_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="cannot load the base model"):
        BaseModel(str(tmp_path))


def test_a_multimodal_model_is_refused(tmp_path: Path) -> None:
    from transformers import Gemma3Config, Gemma3ForConditionalGeneration

    sizes = {key: _SHAPE[key] for key in _SHAPE if not key.endswith("_id")}
    config = Gemma3Config(
        text_config={**sizes, "head_dim": 8, "pad_token_id": 0},
        vision_config={**sizes, "image_size": 8, "patch_size": 4},
    )
    model: Any = Gemma3ForConditionalGeneration
    model(config).save_pretrained(tmp_path)

    with pytest.raises(ValueError, match=r"cannot load .*: multimodal models are not supported: g"):
        BaseModel(str(tmp_path))


def test_onednn_is_enabled_again_after_torch_has_disabled_it(model: BaseModel) -> None:
    torch.backends.mkldnn.set_flags(False)  # type: ignore[no-untyped-call]  # as torch does where it finds no memory

    model.losses(_ROWS)

    assert torch.backends.mkldnn.enabled
