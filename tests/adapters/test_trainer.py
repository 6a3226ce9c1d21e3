"""The trainer: equal to plain PEFT and Adam in any batch, seeded, with complete reports."""

from __future__ import annotations

import math
import random
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load as from_safetensors
from safetensors.torch import load_file

from adapters.step_plan import BATCH, PLANS, REFRESH
from adapters.trainer import LLAMA_TARGETS, Trainer, TrainerConfig
from adapters.training import TrainingProgress, TrainingRequest
from tests.adapters.peft_reference import (
    NUMERATOR,
    RANK,
    Base,
    PeftReference,
    assert_close,
    first_weights,
    load,
)
from tests.adapters.trainers import (
    SEQUENCES,
    TIMEOUT,
    assert_same,
    other_requests,
    paused,
    recorded_rows,
    simulated_trainer_of,
    trainer_of,
    weights_of,
)


class TestEquivalence:
    """An adapter equals that of transformers, PEFT and torch.optim.Adam."""

    def test_alone(self, base: Base, base_trainer: Trainer) -> None:
        plain = PeftReference(base, first_weights(base, seed=21))
        for sequence in SEQUENCES:
            plain.step(*plain.gradients(sequence))

        training = base_trainer.train(TrainingRequest(SEQUENCES, seed=21))

        assert training.losses == pytest.approx(plain.losses, rel=1e-4)
        assert_close(weights_of(training), plain.weights)
        first = from_safetensors(first_weights(base, seed=21))
        assert not any(torch.equal(tensor, first[name]) for name, tensor in plain.weights.items())

    def test_in_a_batch_with_seven_others(self, base: Base, base_trainer: Trainer) -> None:
        plain = PeftReference(base, first_weights(base, seed=21))
        for sequence in SEQUENCES:
            plain.step(*plain.gradients(sequence))
        alone = base_trainer.train(TrainingRequest(SEQUENCES, seed=21))

        with recorded_rows(base_trainer) as rows:
            with paused(base_trainer):
                beside = [
                    base_trainer.submit(TrainingRequest(theirs, seed=k))
                    for k, theirs in enumerate(other_requests(7))
                ]
                mine = base_trainer.submit(TrainingRequest(SEQUENCES, seed=21))
            training = mine.result(TIMEOUT)
            for future in beside:
                assert future.result(TIMEOUT).stop == "steps"

        assert max(rows) == 8
        assert_close(weights_of(training), plain.weights)
        assert_same(training, alone)

    def test_eight_requests_get_their_own_adapters(self, base: Base, base_trainer: Trainer) -> None:
        # Lengths from 2 to 64: some share batches, some cannot.
        random_ = random.Random(5)
        requests = [
            [
                [random_.randrange(128) for _ in range(random_.randint(2, 64))]
                for _ in range(random_.randint(1, 8))
            ]
            for _ in range(8)
        ]
        alone = [
            base_trainer.train(TrainingRequest(sequences, seed=k))
            for k, sequences in enumerate(requests)
        ]

        with paused(base_trainer):
            futures = [
                base_trainer.submit(TrainingRequest(sequences, seed=k))
                for k, sequences in enumerate(requests)
            ]

        for future, expected in zip(futures, alone, strict=True):
            assert_same(future.result(TIMEOUT), expected)

    def test_batched_steps(self, base: Base, base_trainer: Trainer) -> None:
        sequences = [*SEQUENCES, *SEQUENCES[::-1]]
        plain = PeftReference(base, first_weights(base, seed=3))
        for start in range(0, len(sequences), BATCH):
            plain.step(*plain.gradients(*sequences[start : start + BATCH]))

        with paused(base_trainer):
            beside = [
                base_trainer.submit(TrainingRequest(theirs, plan="batched"))
                for theirs in other_requests(3)
            ]
            mine = base_trainer.submit(TrainingRequest(sequences, seed=3, plan="batched"))
        training = mine.result(TIMEOUT)

        assert len(training.losses) == math.ceil(len(sequences) / BATCH)
        assert training.sequences_used == len(sequences)
        assert training.losses == pytest.approx(plain.losses, rel=1e-4)
        assert_close(weights_of(training), plain.weights)
        assert all(future.result(TIMEOUT).sequences_used == 6 for future in beside)

    def test_reused_gradients(self, base: Base, base_trainer: Trainer) -> None:
        a, b, c = SEQUENCES[:3]
        sequences = [a, b, a, a, b, a, c, a, b, b, b, c, a]
        plain = PeftReference(base, first_weights(base, seed=4))
        times: Counter[tuple[int, ...]] = Counter()
        kept: dict[tuple[int, ...], Any] = {}
        for sequence in map(tuple, sequences):
            if times[sequence] % REFRESH == 0:
                kept[sequence] = plain.gradients(sequence)
            times[sequence] += 1
            plain.step(*kept[sequence])

        with recorded_rows(base_trainer) as rows:
            alone = base_trainer.train(TrainingRequest(sequences, seed=4, plan="reuse"))
        with paused(base_trainer):
            beside = [
                base_trainer.submit(TrainingRequest(theirs, plan=plan))
                for theirs, plan in zip(other_requests(3), PLANS, strict=True)
            ]
            mine = base_trainer.submit(TrainingRequest(sequences, seed=4, plan="reuse"))
        training = mine.result(TIMEOUT)

        assert sum(rows) == sum(math.ceil(count / REFRESH) for count in times.values())
        assert alone.losses == pytest.approx(plain.losses, rel=1e-4)
        assert_close(weights_of(alone), plain.weights)
        assert_same(training, alone)
        assert all(future.result(TIMEOUT).stop == "steps" for future in beside)


def test_the_last_linear_layer_alone(tiny_llama: str) -> None:
    # Insight 13 of the paper.
    base = Base("llama", tiny_llama)
    trainer = trainer_of(tiny_llama, targets=("lm_head",), learning_rate=5e-3)
    plain = PeftReference(base, first_weights(base, 1, ("lm_head",)), targets=("lm_head",))
    for sequence in SEQUENCES:
        plain.step(*plain.gradients(sequence))

    training = trainer.train(TrainingRequest(SEQUENCES, seed=1))

    assert training.losses == pytest.approx(plain.losses, rel=1e-4)
    assert_close(weights_of(training), plain.weights)


class TestReporting:
    """Progress, results and losses."""

    def test_progress_and_result_are_complete(self, trainer: Trainer, tiny_llama: str) -> None:
        reported: list[TrainingProgress] = []

        training = trainer.train(TrainingRequest(SEQUENCES), on_step=reported.append)

        adapter = training.adapter
        assert adapter is not None
        assert (training.stop, training.sequences_used) == ("steps", len(SEQUENCES))
        assert [(progress.steps, progress.loss) for progress in reported] == list(
            enumerate(training.losses, start=1)
        )
        assert {progress.total_steps for progress in reported} == {len(SEQUENCES)}
        seconds = [0.0, *(progress.seconds for progress in reported), training.seconds]
        assert seconds == sorted(seconds)
        assert reported[-1].seconds_left == 0
        assert (adapter.base_model, adapter.rank, adapter.scale_numerator) == (
            tiny_llama,
            RANK,
            NUMERATOR,
        )
        assert (adapter.targets, adapter.losses) == (LLAMA_TARGETS, training.losses)

    def test_the_seconds_left_are_within_the_deadline(self, tiny_llama: str) -> None:
        trainer, _ = simulated_trainer_of(tiny_llama)
        reported: list[TrainingProgress] = []

        trainer.train(TrainingRequest(SEQUENCES * 100, seconds=0.5), on_step=reported.append)

        assert len(reported) > 5
        for progress in reported:
            assert progress.seconds_left == pytest.approx(0.5 - progress.seconds)

    def test_the_loss_is_that_before_the_step(self, trainer: Trainer) -> None:
        sequence = SEQUENCES[0]
        before = trainer.nats(sequence, 1) / (len(sequence) - 1)

        training = trainer.train(TrainingRequest([sequence]))

        assert list(training.losses) == [pytest.approx(before, rel=1e-5)]

    def test_a_repeated_sequence_is_learnt(self, trainer: Trainer) -> None:
        training = trainer.train(TrainingRequest([SEQUENCES[0]] * 40))

        assert training.losses[-1] < 0.5 * training.losses[0]

    def test_nats_of_the_base_model_and_of_an_adapter_in_training(self, trainer: Trainer) -> None:
        # Arrange: the nats that transformers computes.
        sequence = SEQUENCES[0]
        with torch.no_grad():
            log_probabilities = (
                load(trainer.config.model)(torch.tensor([sequence])).logits[0].log_softmax(-1)
            )
        expected = -sum(
            float(log_probabilities[i - 1, sequence[i]]) for i in range(4, len(sequence))
        )
        during: list[tuple[float, float]] = []

        # Act: beside other requests, so that the slot is not the first.
        with paused(trainer):
            beside = [
                trainer.submit(TrainingRequest(theirs, seed=k))
                for k, theirs in enumerate(other_requests(3))
            ]
            mine = trainer.submit(
                TrainingRequest([sequence] * 20),
                on_step=lambda progress: during.append(
                    (
                        trainer.nats(sequence, 4),
                        trainer.nats(sequence, 4, trainer.export(progress.slot)),
                    )
                ),
            )
        training = mine.result(TIMEOUT)

        # Assert.
        assert trainer.nats(sequence, 4) == pytest.approx(expected, rel=1e-5)
        assert {base for base, _ in during} == {trainer.nats(sequence, 4)}
        adapted = [adapter for _, adapter in during]
        assert adapted[-1] < 0.7 * expected
        assert len(set(adapted)) == 20
        whole = trainer.nats(sequence, 1) / (len(sequence) - 1)
        assert training.losses[0] == pytest.approx(whole, rel=1e-5)
        assert all(future.result(TIMEOUT).stop == "steps" for future in beside)

    def test_a_returned_adapter_does_not_change(self, trainer: Trainer) -> None:
        adapter = trainer.train(TrainingRequest(SEQUENCES)).adapter
        assert adapter is not None
        copy = bytes(bytearray(adapter.weights))

        trainer.train(TrainingRequest(SEQUENCES, seed=5))

        assert adapter.weights == copy

    def test_a_new_trainer_computes_the_base_models_logits(self, tiny_llama: str) -> None:
        ids = torch.tensor([SEQUENCES[0]])
        fresh = Trainer(TrainerConfig(tiny_llama, precision="float32"))

        with torch.no_grad():
            mine, plain = fresh.base.model(ids).logits, load(tiny_llama)(ids).logits

        torch.testing.assert_close(mine, plain, rtol=1e-4, atol=1e-5)
        assert (fresh.base.context, fresh.scale, fresh.learning_rate) == (64, 16.0, 6e-4)


class TestSeeds:
    """A training that runs alone is the same to the last bit."""

    @pytest.mark.parametrize("plan", PLANS)
    def test_the_same_seed_gives_the_same_bytes(self, trainer: Trainer, plan: str) -> None:
        repeated = SEQUENCES[:3] * 3
        first, other_seed, again = (
            trainer.train(TrainingRequest(repeated, seed=seed, plan=plan)).adapter
            for seed in (1, 2, 1)
        )

        assert first is not None
        assert other_seed is not None
        assert again is not None
        assert first.weights == again.weights
        assert first.weights != other_seed.weights
        assert len({first.name, other_seed.name, again.name}) == 3

    def test_another_trainer_gives_the_same_bytes(self, trainer: Trainer, tiny_llama: str) -> None:
        mine, other = (
            trainer.train(TrainingRequest(SEQUENCES, seed=8)),
            trainer_of(tiny_llama, slots=2).train(TrainingRequest(SEQUENCES, seed=8)),
        )

        assert mine.adapter is not None
        assert other.adapter is not None
        assert mine.adapter.weights == other.adapter.weights

    def test_the_order_of_sequences_matters(self, trainer: Trainer) -> None:
        forward, backward = (
            trainer.train(TrainingRequest(SEQUENCES)).adapter,
            trainer.train(TrainingRequest(SEQUENCES[::-1])).adapter,
        )

        assert forward is not None
        assert backward is not None
        assert forward.weights != backward.weights


class TestRefusals:
    """Invalid requests are refused before anything is computed."""

    @pytest.mark.parametrize("token", [128, 500, -1, -100])
    def test_a_token_outside_the_vocabulary(self, trainer: Trainer, token: int) -> None:
        with pytest.raises(ValueError, match="tokens outside the model"):
            trainer.train(TrainingRequest([SEQUENCES[0], [1, token, 2]]))

    def test_the_first_and_the_last_token_of_the_vocabulary_are_accepted(
        self, trainer: Trainer
    ) -> None:
        assert len(trainer.train(TrainingRequest([[0, 127, 0]])).losses) == 1

    @pytest.mark.parametrize("length", [0, 1, 65])
    def test_a_sequence_too_short_or_too_long(self, trainer: Trainer, length: int) -> None:
        with pytest.raises(ValueError, match=f"has {length} tokens; it needs 2 to 64"):
            trainer.train(TrainingRequest([SEQUENCES[0], [1] * length]))

    @pytest.mark.parametrize("length", [2, 64])
    def test_the_shortest_and_the_longest_sequence_are_accepted(
        self, trainer: Trainer, length: int
    ) -> None:
        assert len(trainer.train(TrainingRequest([[1] * length])).losses) == 1

    def test_an_unknown_plan(self, trainer: Trainer) -> None:
        with pytest.raises(
            ValueError, match="unknown plan 'backwards': one of sequential, batched, reuse"
        ):
            trainer.train(TrainingRequest(SEQUENCES, plan="backwards"))

    @pytest.mark.parametrize("seed", [-1, 1 << 64])
    def test_a_seed_out_of_range(self, trainer: Trainer, seed: int) -> None:
        with pytest.raises(ValueError, match=f"the seed is {seed}; it needs"):
            trainer.train(TrainingRequest(SEQUENCES, seed=seed))

        assert trainer.train(TrainingRequest(SEQUENCES, seed=(1 << 64) - 1)).stop == "steps"

    def test_a_refused_request_does_not_affect_others(self, trainer: Trainer) -> None:
        alone = trainer.train(TrainingRequest(SEQUENCES, seed=1))
        with paused(trainer):
            future = trainer.submit(TrainingRequest(SEQUENCES, seed=1))
            for wrong in ([[1]], [[1, 500]]):
                with pytest.raises(ValueError, match="a training sequence has"):
                    trainer.submit(TrainingRequest(wrong))

        assert_same(future.result(TIMEOUT), alone)

    def test_a_folder_without_a_model_is_named(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match=f"cannot load the base model '{tmp_path}'"):
            Trainer(TrainerConfig(str(tmp_path)))

    def test_a_truncated_model_is_named(self, tmp_path: Path, tiny_llama: str) -> None:
        folder = tmp_path / "cut"
        shutil.copytree(tiny_llama, folder)
        whole = (folder / "model.safetensors").read_bytes()
        (folder / "model.safetensors").write_bytes(whole[: len(whole) // 2])

        with pytest.raises(ValueError, match=f"cannot load the base model '{folder}'"):
            Trainer(TrainerConfig(str(folder)))

    def test_a_model_without_safetensors(self, tmp_path: Path, tiny_llama: str) -> None:
        shutil.copy(Path(tiny_llama) / "config.json", tmp_path)
        torch.save(
            load_file(Path(tiny_llama) / "model.safetensors"), tmp_path / "pytorch_model.bin"
        )

        with pytest.raises(ValueError, match="cannot load the base model"):
            Trainer(TrainerConfig(str(tmp_path)))

    def test_unknown_targets(self, tiny_llama: str) -> None:
        with pytest.raises(
            ValueError, match="no linear projections named c_attn: set the LoRA targets"
        ):
            Trainer(TrainerConfig(tiny_llama, targets=("c_attn",)))
