"""The trainer: it is plain PEFT and Adam, only faster; seeded, bounded by time, and never a broken adapter."""

from __future__ import annotations

import math
import shutil
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load as from_safetensors
from safetensors.torch import load_file, save_file
from torch.nn import functional

from adapters.lora import LoraLayers
from adapters.trainer import LLAMA_TARGETS, Trainer, TrainerConfig

_SEQUENCES = [[(11 * i + 5 * j) % 97 for j in range(12 + i)] for i in range(6)]
_POISON = 99  # in no sequence above


@pytest.fixture(scope="module")
def trainer(tiny_llama: str) -> Trainer:
    """A trainer of the tiny Llama, shared: every training starts on a fresh adapter."""
    return Trainer(TrainerConfig(tiny_llama, rank=4, scale_numerator=8.0))


@pytest.fixture(scope="module")
def poisoned(tiny_llama: str, tmp_path_factory: pytest.TempPathFactory) -> Trainer:
    """The same model, in which one token's embedding is infinite."""
    folder = tmp_path_factory.mktemp("poisoned") / "model"
    shutil.copytree(tiny_llama, folder)
    weights = load_file(folder / "model.safetensors")
    weights["model.embed_tokens.weight"][_POISON] = math.inf
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return Trainer(TrainerConfig(str(folder), rank=4, scale_numerator=8.0))


def load(folder: str) -> Any:
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    return model.eval()


def is_finite(weights: bytes) -> bool:
    return all(bool(torch.isfinite(tensor).all()) for tensor in from_safetensors(weights).values())


@pytest.mark.parametrize("kind", ["llama", "qwen"])
def test_it_trains_as_plain_peft_with_adam_does(kind: str, tiny_llama: str, tiny_qwen: str) -> None:
    # Arrange: PEFT on the same base, begun with the same A and B.
    from peft import LoraConfig, get_peft_model

    folder = tiny_llama if kind == "llama" else tiny_qwen
    layers = LoraLayers(load(folder), 4, 8.0, LLAMA_TARGETS)
    layers.reset(21)
    theirs = get_peft_model(
        load(folder), LoraConfig(r=4, lora_alpha=8, target_modules=list(LLAMA_TARGETS), task_type="CAUSAL_LM")
    )
    learning = {
        name.replace(".default.", "."): parameter
        for name, parameter in theirs.named_parameters()
        if parameter.requires_grad
    }
    first = from_safetensors(layers.export())
    assert first.keys() == learning.keys()
    with torch.no_grad():
        for name, parameter in learning.items():
            parameter.copy_(first[name])

    # Act: one Adam step a sequence, there and here.
    adam = torch.optim.Adam(learning.values(), lr=5e-3)
    losses = []
    for sequence in _SEQUENCES:
        ids = torch.tensor([sequence])
        loss = theirs(ids, labels=ids).loss
        adam.zero_grad()
        loss.backward()
        adam.step()
        losses.append(loss.item())
    trainer = Trainer(TrainerConfig(folder, rank=4, scale_numerator=8.0, learning_rate=5e-3))
    training = trainer.train(_SEQUENCES, seed=21)

    # Assert.
    assert training.adapter is not None
    assert training.losses == pytest.approx(losses, rel=1e-4)
    trained = from_safetensors(training.adapter.weights)
    for name, parameter in learning.items():
        assert not torch.equal(trained[name], first[name])
        torch.testing.assert_close(trained[name], parameter.detach(), rtol=1e-4, atol=1e-6)


def test_a_training_is_told_in_full(trainer: Trainer, tiny_llama: str) -> None:
    steps: list[tuple[int, float]] = []

    training = trainer.train(_SEQUENCES, on_step=lambda n, loss: steps.append((n, loss)))

    adapter = training.adapter
    assert adapter is not None
    assert (training.stop, len(training.losses)) == ("steps", len(_SEQUENCES))
    assert steps == list(enumerate(training.losses, start=1))
    assert (adapter.base_model, adapter.rank, adapter.scale_numerator) == (tiny_llama, 4, 8.0)
    assert (adapter.targets, adapter.losses) == (LLAMA_TARGETS, training.losses)
    assert training.seconds > 0


def test_the_loss_is_that_before_the_step(trainer: Trainer) -> None:
    sequence = _SEQUENCES[0]
    ids = torch.tensor([sequence])
    with torch.no_grad():
        logits = load(trainer.config.model)(ids).logits[0]
    expected = float(functional.cross_entropy(logits[:-1], ids[0, 1:]))

    training = trainer.train([sequence])

    assert list(training.losses) == [pytest.approx(expected, rel=1e-5)]


def test_the_same_sequence_again_and_again_is_learnt(trainer: Trainer) -> None:
    training = trainer.train([_SEQUENCES[0]] * 40)

    assert training.losses[-1] < 0.5 * training.losses[0]


def test_nats_are_those_of_the_adapter_last_trained(trainer: Trainer) -> None:
    sequence = _SEQUENCES[0]
    trainer.reset()
    before = trainer.nats(sequence, 4)
    ids = torch.tensor([sequence])
    with torch.no_grad():
        log_probabilities = load(trainer.config.model)(ids).logits[0].log_softmax(-1)
    expected = -sum(float(log_probabilities[i - 1, sequence[i]]) for i in range(4, len(sequence)))

    trainer.train([sequence] * 20)
    after = trainer.nats(sequence, 4)
    trainer.reset()

    assert before == pytest.approx(expected, rel=1e-5)
    assert after < 0.7 * before
    assert trainer.nats(sequence, 4) == before


def test_the_same_seed_gives_the_same_bytes(trainer: Trainer) -> None:
    first, other_seed, again = (trainer.train(_SEQUENCES, seed=seed).adapter for seed in (1, 2, 1))

    assert first is not None
    assert other_seed is not None
    assert again is not None
    assert first.weights == again.weights
    assert first.weights != other_seed.weights
    assert len({first.name, other_seed.name, again.name}) == 3


def test_the_order_of_sequences_matters(trainer: Trainer) -> None:
    forward, backward = trainer.train(_SEQUENCES).adapter, trainer.train(_SEQUENCES[::-1]).adapter

    assert forward is not None
    assert backward is not None
    assert forward.weights != backward.weights


def test_an_adapter_given_away_does_not_change(trainer: Trainer) -> None:
    adapter = trainer.train(_SEQUENCES).adapter
    assert adapter is not None
    copy = bytes(bytearray(adapter.weights))

    trainer.train(_SEQUENCES, seed=5)

    assert adapter.weights == copy


@pytest.mark.parametrize("seconds", [0.0, -1.0, 1e-9])
def test_without_time_there_is_no_step(trainer: Trainer, seconds: float) -> None:
    training = trainer.train(_SEQUENCES, seconds=seconds)

    assert (training.adapter, training.losses, training.stop) == (None, (), "seconds")


def test_when_the_time_is_up_the_steps_taken_are_an_adapter(trainer: Trainer) -> None:
    # Far more steps than fit: what is trained until the deadline is what those steps alone would have given.
    many = _SEQUENCES * 20_000

    training = trainer.train(many, seed=3, seconds=0.3)

    steps = len(training.losses)
    alone = trainer.train(many[:steps], seed=3)
    assert training.stop == "seconds"
    assert 0 < steps < len(many)
    assert training.adapter is not None
    assert alone.adapter is not None
    assert training.adapter.weights == alone.adapter.weights


def test_no_sequences_give_no_adapter(trainer: Trainer) -> None:
    training = trainer.train([])

    assert (training.adapter, training.losses, training.stop) == (None, (), "steps")


def test_cancelled_before_it_begins_it_takes_no_step(trainer: Trainer) -> None:
    cancelled = threading.Event()
    cancelled.set()

    training = trainer.train(_SEQUENCES, cancelled=cancelled)

    assert (training.adapter, training.losses, training.stop) == (None, (), "cancelled")


def test_cancelled_within_it_ends_before_the_next_step(trainer: Trainer) -> None:
    cancelled = threading.Event()

    def after_two(n: int, _: float) -> None:
        if n == 2:
            cancelled.set()

    training = trainer.train(_SEQUENCES, cancelled=cancelled, on_step=after_two)

    assert (training.adapter, len(training.losses), training.stop) == (None, 2, "cancelled")


def test_a_step_whose_loss_is_not_finite_is_dropped(poisoned: Trainer) -> None:
    sound = poisoned.train(_SEQUENCES[:2], seed=4)

    training = poisoned.train([*_SEQUENCES[:2], [1, _POISON, 2], *_SEQUENCES[2:]], seed=4)

    assert training.stop == "diverged"
    assert training.losses == sound.losses
    assert training.adapter is not None
    assert sound.adapter is not None
    assert training.adapter.weights == sound.adapter.weights
    assert is_finite(training.adapter.weights)


def test_a_first_step_that_diverges_gives_no_adapter_and_harms_no_later_one(poisoned: Trainer) -> None:
    before = poisoned.train(_SEQUENCES).adapter

    training = poisoned.train([[_POISON, 1, 2], *_SEQUENCES])

    after = poisoned.train(_SEQUENCES).adapter
    assert (training.adapter, training.losses, training.stop) == (None, (), "diverged")
    assert before is not None
    assert after is not None
    assert after.weights == before.weights


@pytest.mark.parametrize("learning_rate", [1e30, 1e38, 1e39])
def test_an_enormous_learning_rate_never_gives_a_broken_adapter(tiny_llama: str, learning_rate: float) -> None:
    trainer = Trainer(TrainerConfig(tiny_llama, rank=4, learning_rate=learning_rate))

    training = trainer.train(_SEQUENCES)

    assert (training.adapter, training.stop) == (None, "diverged")


def test_a_learning_rate_of_zero_is_taken_as_it_is(tiny_llama: str) -> None:
    trainer = Trainer(TrainerConfig(tiny_llama, rank=4, learning_rate=0.0))

    training = trainer.train([_SEQUENCES[0]] * 3)

    assert training.adapter is not None
    assert trainer.learning_rate == 0.0
    weights = from_safetensors(training.adapter.weights)
    assert not any(bool(tensor.any()) for name, tensor in weights.items() if "lora_B" in name)
    assert len(set(training.losses)) == 1


def test_a_step_that_fails_half_way_leaves_nothing_to_the_next_adapter(trainer: Trainer) -> None:
    # Arrange: the gradient that backward reaches last cannot be computed, when all others are there.
    before = trainer.train(_SEQUENCES, seed=6).adapter
    first = next(parameter for parameter in trainer.model.parameters() if parameter.requires_grad)

    def fail(_: torch.Tensor) -> None:
        raise RuntimeError("can't allocate memory")

    hook = first.register_hook(fail)
    try:
        with pytest.raises(RuntimeError, match="can't allocate memory"):
            trainer.train(_SEQUENCES[::-1], seed=7)
    finally:
        hook.remove()

    after = trainer.train(_SEQUENCES, seed=6).adapter

    assert before is not None
    assert after is not None
    assert after.weights == before.weights


@pytest.mark.parametrize("token", [128, 500, -1, -100])
def test_a_token_that_the_model_lacks_is_refused(trainer: Trainer, token: int) -> None:
    with pytest.raises(ValueError, match="tokens that the model does not know"):
        trainer.train([_SEQUENCES[0], [1, token, 2]])


def test_the_first_and_the_last_token_of_the_vocabulary_are_taken(trainer: Trainer) -> None:
    assert len(trainer.train([[0, 127, 0]]).losses) == 1


@pytest.mark.parametrize("length", [0, 1, 65])
def test_a_sequence_too_short_or_too_long_is_refused(trainer: Trainer, length: int) -> None:
    with pytest.raises(ValueError, match=f"has {length} tokens; it needs 2 to 64"):
        trainer.train([_SEQUENCES[0], [1] * length])


@pytest.mark.parametrize("length", [2, 64])
def test_the_shortest_and_the_longest_sequence_are_taken(trainer: Trainer, length: int) -> None:
    assert len(trainer.train([[1] * length]).losses) == 1


def test_a_folder_without_a_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"cannot load the base model '{tmp_path}'"):
        Trainer(TrainerConfig(str(tmp_path)))


def test_a_truncated_model_is_named(tmp_path: Path, tiny_llama: str) -> None:
    folder = tmp_path / "cut"
    shutil.copytree(tiny_llama, folder)
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[: len(whole) // 2])

    with pytest.raises(ValueError, match=f"cannot load the base model '{folder}'"):
        Trainer(TrainerConfig(str(folder)))


def test_a_model_without_safetensors_is_refused(tmp_path: Path, tiny_llama: str) -> None:
    shutil.copy(Path(tiny_llama) / "config.json", tmp_path)
    torch.save(load_file(Path(tiny_llama) / "model.safetensors"), tmp_path / "pytorch_model.bin")

    with pytest.raises(ValueError, match="cannot load the base model"):
        Trainer(TrainerConfig(str(tmp_path)))


def test_targets_that_the_model_lacks_are_refused(tiny_llama: str) -> None:
    with pytest.raises(ValueError, match="no linear projections named c_attn: set the LoRA targets"):
        Trainer(TrainerConfig(tiny_llama, targets=("c_attn",)))


def test_a_new_trainer_is_the_base_model(trainer: Trainer) -> None:
    ids = torch.tensor([_SEQUENCES[0]])
    fresh = Trainer(TrainerConfig(trainer.config.model))

    with torch.no_grad():
        mine, plain = fresh.model(ids).logits, load(trainer.config.model)(ids).logits

    torch.testing.assert_close(mine, plain, rtol=0, atol=0)
    assert (fresh.context, fresh.learning_rate) == (64, 3e-3)
