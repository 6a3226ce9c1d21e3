"""The LoRA slots: each is an independent adapter, and exports are equivalent in PEFT."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load as from_safetensors

from adapters.adapter import Adapter
from adapters.model.lora import LoraBank, LoraProjection
from adapters.trainer import LLAMA_TARGETS
from tests.adapters.peft_reference import Base, PeftReference, load

_ROWS = torch.tensor([[(17 * m + 5 * s * s) % 128 for s in range(9)] for m in range(4)])
_ONE = _ROWS[:1]


class Slots:
    """A model with a bank of slots."""

    def __init__(
        self, base: Base, slots: int = 3, targets: tuple[str, ...] = (), rank: int = 4
    ) -> None:
        self.model = load(base.folder)
        self.targets = targets or base.targets
        self.bank = LoraBank(self.model, rank, 8.0 / rank, self.targets, slots)

    @torch.no_grad()
    def logits(self, ids_MS: torch.Tensor, slots: list[int] | None = None) -> torch.Tensor:
        """Logits of these rows with the adapters of these slots, or of the base model."""
        if slots is None:
            return self._logits(ids_MS)
        with self.bank.bind(slots):
            return self._logits(ids_MS)

    def gradients(self, ids_MS: torch.Tensor, slots: list[int]) -> torch.Tensor:
        """Gradients of each row's mean loss with respect to its own adapter [M, P]."""
        with self.bank.bind(slots) as gradients_MP:
            logits = self._logits(ids_MS)
            losses = [
                torch.nn.functional.cross_entropy(row[:-1], ids[1:])
                for row, ids in zip(logits, ids_MS, strict=True)
            ]
            torch.stack(losses).sum().backward()  # type: ignore[no-untyped-call]
        return gradients_MP.clone()

    def _logits(self, ids_MS: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.model(ids_MS, use_cache=False).logits
        return found


@pytest.fixture(scope="module")
def three(base: Base) -> Slots:
    """Three slots, which each test fills anew."""
    return Slots(base)


@torch.no_grad()
def logits_of(model: Any, ids_MS: torch.Tensor = _ONE) -> torch.Tensor:
    found: torch.Tensor = model(ids_MS, use_cache=False).logits
    return found


def fill(bank: LoraBank, slot: int, seed: int = 3) -> None:
    """Fill a slot with an adapter that changes logits."""
    generator = torch.Generator().manual_seed(seed)
    bank.weights_CP[slot] = torch.randn(bank.size, generator=generator) * 0.2


def fill_all(bank: LoraBank) -> None:
    for slot in range(len(bank.weights_CP)):
        fill(bank, slot, seed=slot)


def tensors(bank: LoraBank, slot: int) -> dict[str, torch.Tensor]:
    exported: dict[str, torch.Tensor] = from_safetensors(bank.export(slot))
    return exported


def adapter_of(slots: Slots, folder: str, rank: int = 4, slot: int = 0) -> Adapter:
    return Adapter("mayfly-test", folder, rank, 8.0, slots.targets, slots.bank.export(slot), (1.0,))


class TestReset:
    """A fresh adapter, initialised as in PEFT."""

    def test_a_fresh_adapter_changes_no_logit(self, base: Base, three: Slots) -> None:
        for slot in range(3):
            three.bank.reset(slot, slot)

        torch.testing.assert_close(
            three.logits(_ROWS[:3], [0, 1, 2]), logits_of(load(base.folder), _ROWS[:3])
        )

    def test_unbound_rows_give_the_base_models_logits(self, base: Base, three: Slots) -> None:
        fill_all(three.bank)

        torch.testing.assert_close(
            three.logits(_ROWS), logits_of(load(base.folder), _ROWS), rtol=0, atol=0
        )

    def test_a_trained_adapter_changes_logits_until_it_is_reset(self, three: Slots) -> None:
        fill(three.bank, 1)
        assert (three.logits(_ONE, [1]) - three.logits(_ONE)).abs().max() > 0.1

        three.bank.reset(1, 2)

        torch.testing.assert_close(three.logits(_ONE, [1]), three.logits(_ONE))

    def test_a_reset_depends_on_the_seed_alone(self, base: Base, three: Slots) -> None:
        exports = []
        for slot, seed in ((0, 1), (1, 2), (2, 1)):
            fill(three.bank, slot)
            three.bank.reset(slot, seed)
            exports.append(three.bank.export(slot))
        other = Slots(base, slots=1)
        other.bank.reset(0, 1)

        assert exports[0] == exports[2] == other.bank.export(0)
        assert exports[0] != exports[1]

    def test_initialisation_is_pefts(self, base: Base) -> None:
        # PEFT: A by kaiming_uniform_(a = sqrt 5), which is uniform within 1 / sqrt(inputs); B zero.
        bank = Slots(base, rank=16).bank

        bank.reset(2, 5)

        for name, tensor in tensors(bank, 2).items():
            if "lora_B" in name:
                assert not tensor.any()
                continue
            bound = tensor.shape[1] ** -0.5
            assert 0.95 * bound < tensor.abs().max() <= bound
            assert abs(float(tensor.std()) / (bound / 3**0.5) - 1) < 0.1

    def test_a_reset_changes_no_other_slot(self, three: Slots) -> None:
        fill_all(three.bank)
        before = [three.bank.export(slot) for slot in range(3)]

        three.bank.reset(1, 9)

        assert three.bank.export(0) == before[0]
        assert three.bank.export(1) != before[1]
        assert three.bank.export(2) == before[2]

    def test_a_reset_clears_adams_moments(self, three: Slots) -> None:
        gradient_P = torch.linspace(-1, 1, three.bank.size)
        ends = []
        for earlier in (0, 5):
            for _ in range(earlier):
                three.bank.step(0, -gradient_P.square(), 0.1)
            three.bank.reset(0, 1)
            three.bank.step(0, gradient_P, 0.1)
            ends.append(three.bank.export(0))

        assert ends[0] == ends[1]


class TestTargets:
    """The adapted projections."""

    def test_only_targets_are_adapted(self, tiny_llama: str) -> None:
        slots = Slots(Base("llama", tiny_llama), targets=("q_proj", "down_proj"))

        assert sorted(slots.bank.layers) == [
            f"model.layers.{i}.{name}"
            for i in range(2)
            for name in ("mlp.down_proj", "self_attn.q_proj")
        ]
        assert sum(isinstance(module, LoraProjection) for module in slots.model.modules()) == 4

    def test_the_base_model_is_frozen(self, base: Base, three: Slots) -> None:
        before = {name: tensor.clone() for name, tensor in three.model.state_dict().items()}
        fill_all(three.bank)

        three.gradients(_ROWS[:2], [0, 2])

        assert not any(parameter.requires_grad for parameter in three.model.parameters())
        assert all(parameter.grad is None for parameter in three.model.parameters())
        assert all(
            torch.equal(tensor, before[name]) for name, tensor in three.model.state_dict().items()
        )

    @pytest.mark.parametrize(
        "targets", [("c_attn",), (), ("embed_tokens",), ("self_attn",), ("proj",)]
    )
    def test_unknown_targets_are_refused(self, tiny_llama: str, targets: tuple[str, ...]) -> None:
        with pytest.raises(ValueError, match="no linear projections named"):
            LoraBank(load(tiny_llama), 4, 2.0, targets)

    @pytest.mark.parametrize("targets", [LLAMA_TARGETS, ("wte", "wpe"), ("ln_1",)])
    def test_llama_targets_are_refused_for_gpt2(
        self, tiny_gpt2: str, targets: tuple[str, ...]
    ) -> None:
        with pytest.raises(ValueError, match="no linear projections named"):
            LoraBank(load(tiny_gpt2), 4, 2.0, targets)


class TestRows:
    """Each row of a batch uses and trains the adapter of its own slot alone."""

    @settings(
        deadline=None, max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture]
    )
    @given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 2)), min_size=1, max_size=6))
    def test_in_any_order_and_repeated(self, three: Slots, pairs: list[tuple[int, int]]) -> None:
        # Consecutive slots, descending slots, the same slot twice: as each alone.
        fill_all(three.bank)
        ids_MS = _ROWS[[row for row, _ in pairs]]
        slots = [slot for _, slot in pairs]

        together = three.logits(ids_MS, slots)
        gradients_MP = three.gradients(ids_MS, slots)

        for m, slot in enumerate(slots):
            alone = three.logits(ids_MS[m : m + 1], [slot])
            torch.testing.assert_close(together[m : m + 1], alone, rtol=1e-4, atol=1e-5)
            alone_P = three.gradients(ids_MS[m : m + 1], [slot])[0]
            assert (gradients_MP[m] - alone_P).norm() <= 1e-5 * alone_P.norm()

    def test_other_slots_have_no_effect(self, three: Slots) -> None:
        fill_all(three.bank)
        logits, gradients_MP = three.logits(_ROWS[:2], [1, 1]), three.gradients(_ROWS[:2], [1, 1])

        three.bank.weights_CP[0] = torch.nan
        three.bank.weights_CP[2] = torch.inf

        torch.testing.assert_close(three.logits(_ROWS[:2], [1, 1]), logits, rtol=0, atol=0)
        torch.testing.assert_close(three.gradients(_ROWS[:2], [1, 1]), gradients_MP, rtol=0, atol=0)

    def test_a_broken_adapter_harms_no_other_row_of_its_batch(self, three: Slots) -> None:
        fill_all(three.bank)
        logits, gradients_MP = (
            three.logits(_ROWS[:3], [0, 1, 2]),
            three.gradients(_ROWS[:3], [0, 1, 2]),
        )

        three.bank.weights_CP[1] = torch.nan
        found, found_MP = three.logits(_ROWS[:3], [0, 1, 2]), three.gradients(_ROWS[:3], [0, 1, 2])

        assert found[1].isnan().all()
        assert not found_MP[1].isfinite().all()
        for m in (0, 2):
            torch.testing.assert_close(found[m], logits[m])
            torch.testing.assert_close(found_MP[m], gradients_MP[m])

    def test_gradients_are_of_the_current_batch_alone(self, three: Slots) -> None:
        # The buffer of gradients is reused for more, fewer and other rows.
        fill_all(three.bank)
        before_MP = three.gradients(_ROWS[:1], [2])

        three.gradients(_ROWS, [0, 1, 2, 0])
        three.gradients(_ROWS[1:3], [2, 1])

        torch.testing.assert_close(three.gradients(_ROWS[:1], [2]), before_MP, rtol=0, atol=0)

    def test_an_error_in_the_block_unbinds(self, base: Base, three: Slots) -> None:
        fill_all(three.bank)

        with pytest.raises(RuntimeError, match="stop"), three.bank.bind([1]):
            raise RuntimeError("stop")

        torch.testing.assert_close(
            three.logits(_ROWS), logits_of(load(base.folder), _ROWS), rtol=0, atol=0
        )

    def test_gradients_equal_autograd_through_peft(self, base: Base, three: Slots) -> None:
        fill_all(three.bank)

        gradients_MP = three.gradients(_ROWS[:3], [2, 0, 1])

        for m, slot in enumerate([2, 0, 1]):
            plain = PeftReference(base, three.bank.export(slot))
            expected, _ = plain.gradients(_ROWS[m].tolist())
            holder = Slots(base, slots=1)
            # Exported like an adapter, the gradient is found by name.
            holder.bank.weights_CP[0] = gradients_MP[m]
            found = tensors(holder.bank, 0)
            for name, gradient in zip(plain.learning, expected, strict=True):
                assert gradient.any(), name
                assert (found[name] - gradient).norm() <= 1e-4 * gradient.norm(), name


class TestLearning:
    """Adam, each slot with its own moments and count of steps."""

    def test_a_step_is_torchs_adam(self, three: Slots) -> None:
        generator = torch.Generator().manual_seed(6)
        three.bank.reset(1, 4)
        expected_P = three.bank.weights_CP[1].clone().requires_grad_()
        adam = torch.optim.Adam([expected_P], lr=0.01)

        for _ in range(5):
            gradient_P = torch.randn(three.bank.size, generator=generator)
            expected_P.grad = gradient_P.clone()
            adam.step()
            three.bank.step(1, gradient_P, 0.01)

        torch.testing.assert_close(
            three.bank.weights_CP[1], expected_P.detach(), rtol=1e-5, atol=1e-7
        )

    @settings(
        deadline=None, max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture]
    )
    @given(st.lists(st.integers(0, 2), max_size=12))
    def test_in_any_order_of_slots_each_learns_as_alone(
        self, three: Slots, order: list[int]
    ) -> None:
        gradients_CP = torch.randn(3, three.bank.size, generator=torch.Generator().manual_seed(7))
        for slot in range(3):
            three.bank.reset(slot, slot)
        for slot in order:
            three.bank.step(slot, gradients_CP[slot], 0.01)
        together = [three.bank.export(slot) for slot in range(3)]

        for slot in range(3):
            three.bank.reset(slot, slot)
            for _ in range(order.count(slot)):
                three.bank.step(slot, gradients_CP[slot], 0.01)

        assert [three.bank.export(slot) for slot in range(3)] == together

    def test_a_step_does_not_change_the_gradient(self, three: Slots) -> None:
        # The plan "reuse" needs the gradient again.
        gradient_P = torch.linspace(-1, 1, three.bank.size)
        before_P = gradient_P.clone()

        three.bank.step(0, gradient_P, 0.01)

        assert torch.equal(gradient_P, before_P)


class TestExport:
    """PEFT's format, both ways."""

    @pytest.mark.parametrize("slot", [0, 2])
    def test_peft_loads_it_and_gives_the_same_logits(
        self, tmp_path: Path, base: Base, three: Slots, slot: int
    ) -> None:
        from peft import PeftModel

        fill_all(three.bank)
        adapter_of(three, base.folder, slot=slot).save(tmp_path / "adapter")

        theirs = PeftModel.from_pretrained(load(base.folder), str(tmp_path / "adapter"))

        assert (logits_of(theirs) - logits_of(load(base.folder))).abs().max() > 0.1
        torch.testing.assert_close(
            logits_of(theirs), three.logits(_ONE, [slot]), rtol=1e-4, atol=1e-4
        )

    def test_peft_loads_one_of_another_rank_and_fewer_targets(
        self, tmp_path: Path, tiny_qwen: str
    ) -> None:
        from peft import PeftModel

        base = Base("qwen", tiny_qwen)
        slots = Slots(base, slots=1, targets=("v_proj", "up_proj"), rank=3)
        fill(slots.bank, 0)
        adapter_of(slots, base.folder, rank=3).save(tmp_path / "adapter")

        theirs = PeftModel.from_pretrained(load(base.folder), str(tmp_path / "adapter"))

        torch.testing.assert_close(logits_of(theirs), slots.logits(_ONE, [0]), rtol=1e-4, atol=1e-4)

    def test_the_keys_are_exactly_those_that_peft_writes(
        self, tmp_path: Path, base: Base, three: Slots
    ) -> None:
        from peft import LoraConfig, get_peft_model

        config = LoraConfig(
            r=4,
            target_modules=list(base.targets),
            task_type="CAUSAL_LM",
            fan_in_fan_out=base.kind == "gpt2",
        )
        get_peft_model(load(base.folder), config).save_pretrained(tmp_path)
        written = from_safetensors((tmp_path / "adapter_model.safetensors").read_bytes())

        exported = tensors(three.bank, 1)

        shapes = {name: tensor.shape for name, tensor in exported.items()}
        assert shapes == {name: tensor.shape for name, tensor in written.items()}
        assert {tensor.dtype for tensor in exported.values()} == {torch.float32}

    def test_an_export_does_not_change_later(self, three: Slots) -> None:
        fill(three.bank, 0)
        exported = three.bank.export(0)
        copy = bytes(bytearray(exported))

        three.bank.reset(0, 1)

        assert exported == copy

    def test_loading_an_export_restores_the_adapter(self, base: Base, three: Slots) -> None:
        fill_all(three.bank)
        exports = [three.bank.export(slot) for slot in range(3)]
        other = Slots(base, slots=2)

        other.bank.load(1, exports[2])

        assert other.bank.export(1) == exports[2]
        torch.testing.assert_close(other.logits(_ONE, [1]), three.logits(_ONE, [2]))

    def test_a_loaded_adapter_has_new_moments(self, three: Slots) -> None:
        gradient_P = torch.linspace(-1, 1, three.bank.size)
        fill(three.bank, 0)
        first = three.bank.export(0)
        ends = []
        for earlier in (0, 3):
            for _ in range(earlier):
                three.bank.step(0, -gradient_P.square(), 0.1)
            three.bank.load(0, first)
            three.bank.step(0, gradient_P, 0.1)
            ends.append(three.bank.export(0))

        assert ends[0] == ends[1]

    def test_foreign_weights_are_refused_without_effect(self, base: Base, three: Slots) -> None:
        fill_all(three.bank)
        mine = three.bank.export(0)
        other_rank, other_targets = Slots(base, rank=5), Slots(base, targets=base.targets[:1])

        for wrong in (b"", b"x" * len(mine), mine[:-4], mine + b"0000", *(
            other.bank.export(0) for other in (other_rank, other_targets)
        )):  # fmt: skip
            with pytest.raises(ValueError, match="another model, rank or LoRA targets"):
                three.bank.load(0, wrong)

        assert three.bank.export(0) == mine

    def test_an_adapter_is_saved_as_two_files(self, tmp_path: Path, tiny_llama: str) -> None:
        adapter = adapter_of(Slots(Base("llama", tiny_llama)), tiny_llama)

        adapter.save(tmp_path / "a" / "b")

        files = {file.name: file.read_bytes() for file in (tmp_path / "a" / "b").iterdir()}
        config = json.loads(files.pop("adapter_config.json"))
        assert files == {"adapter_model.safetensors": adapter.weights}
        assert (config["peft_type"], config["r"], config["lora_alpha"]) == ("LORA", 4, 8.0)
        assert (config["target_modules"], config["base_model_name_or_path"]) == (
            list(LLAMA_TARGETS),
            tiny_llama,
        )


def test_a_bfloat16_base_keeps_float32_adapters(base: Base) -> None:
    exact = Slots(base, slots=2)
    rough = Slots(base, slots=2)
    rough.model = load(base.folder).to(torch.bfloat16)
    rough.bank = LoraBank(rough.model, 4, 2.0, base.targets, 2)
    for slots in (exact, rough):
        fill_all(slots.bank)

    gradients_MP, found_MP = exact.gradients(_ROWS[:2], [1, 0]), rough.gradients(_ROWS[:2], [1, 0])

    assert rough.logits(_ONE, [1]).dtype == torch.bfloat16
    assert rough.bank.weights_CP.dtype == found_MP.dtype == torch.float32
    assert {tensor.dtype for tensor in tensors(rough.bank, 1).values()} == {torch.float32}
    for gradient_P, found_P in zip(gradients_MP, found_MP, strict=True):
        assert torch.cosine_similarity(gradient_P, found_P, dim=0) > 0.95


class TestMemory:
    """Slots take memory when they are used, and return it."""

    def test_slots_take_memory_when_they_are_written_to_and_return_it(self, base: Base) -> None:
        bank = Slots(base, slots=500, rank=64).bank
        buffers = 4 * bank.weights_CP.nbytes
        unused = _resident_bytes()

        for slot in range(0, 500, 2):
            bank.reset(slot, 0)
        used = _resident_bytes()
        bank.release()

        assert used - unused > 0.3 * buffers
        assert _resident_bytes() - unused < 0.1 * buffers

    def test_a_slot_can_be_used_after_the_release(self, three: Slots) -> None:
        three.bank.reset(1, seed=5)
        before = three.bank.export(1)

        three.bank.release()
        three.bank.reset(1, seed=5)

        assert three.bank.export(1) == before


def _resident_bytes() -> int:
    return int(psutil.Process().memory_info().rss)
