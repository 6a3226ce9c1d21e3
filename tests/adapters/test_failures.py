"""Failures of one request (cancelled, diverged, out of memory, raising) do not affect others."""

from __future__ import annotations

import math
import random
import shutil
import signal
import threading
import time
from collections import Counter
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from adapters.model.row import Row
from adapters.step_plan import PLANS
from adapters.trainer import Trainer
from adapters.training import TrainingProgress, TrainingRequest, TrainingResult
from tests.adapters.peft_reference import Base, assert_close
from tests.adapters.trainers import (
    POISON,
    SEQUENCES,
    TIMEOUT,
    assert_idle,
    assert_same,
    count_jobs,
    failing_on_poison,
    other_requests,
    paused,
    recorded_rows,
    trainer_of,
    trainer_threads,
    weights_of,
)


class TestCancelling:
    """Cancelling takes effect before the next step."""

    def test_before_the_first_step(self, trainer: Trainer) -> None:
        cancelled = threading.Event()
        cancelled.set()

        training = trainer.train(TrainingRequest(SEQUENCES), cancelled=cancelled)

        assert (training.adapter, training.losses, training.stop) == (None, (), "cancelled")

    def test_between_steps(self, trainer: Trainer) -> None:
        cancelled = threading.Event()

        def after_two(progress: TrainingProgress) -> None:
            if progress.steps == 2:
                cancelled.set()

        training = trainer.train(TrainingRequest(SEQUENCES), cancelled=cancelled, on_step=after_two)

        assert (training.adapter, len(training.losses), training.stop) == (None, 2, "cancelled")

    def test_while_waiting_for_a_slot(self, tiny_llama: str) -> None:
        trainer = trainer_of(tiny_llama, slots=1)
        stop, started, cancelled = threading.Event(), threading.Event(), threading.Event()
        first = trainer.submit(
            TrainingRequest([SEQUENCES[0]] * 20_000),
            cancelled=stop,
            on_step=lambda _: started.set(),
        )
        assert started.wait(TIMEOUT)

        second = trainer.submit(TrainingRequest(SEQUENCES), cancelled=cancelled)
        cancelled.set()
        training = second.result(TIMEOUT)

        assert (training.adapter, training.losses, training.stop) == (None, (), "cancelled")
        assert not first.done()
        stop.set()
        assert first.result(TIMEOUT).stop == "cancelled"

    def test_cancelling_the_future_has_no_effect(self, tiny_llama: str) -> None:
        # asyncio.wrap_future cancels the future when its task is cancelled.
        trainer = trainer_of(tiny_llama)
        with paused(trainer):
            beside = trainer.submit(TrainingRequest(SEQUENCES, seed=1))
            left = trainer.submit(TrainingRequest([SEQUENCES[0]] * 3))
            left.cancel()

        assert beside.result(TIMEOUT).stop == "steps"
        assert trainer.submit(TrainingRequest(SEQUENCES)).result(TIMEOUT).stop == "steps"

    def test_a_keyboard_interrupt_ends_the_training(self, tiny_llama: str) -> None:
        trainer = trainer_of(tiny_llama)
        before = trainer.train(TrainingRequest(SEQUENCES, seed=2))
        steps: list[int] = []
        main = threading.get_ident()

        def interrupt(progress: TrainingProgress) -> None:
            steps.append(progress.steps)
            if progress.steps == 20:
                signal.pthread_kill(main, signal.SIGINT)

        # SIGINT is ignored if the tests run in the background of a shell.
        handler = signal.signal(signal.SIGINT, signal.default_int_handler)
        with pytest.raises(KeyboardInterrupt):
            trainer.train(TrainingRequest([SEQUENCES[0]] * 20_000), on_step=interrupt)
        signal.signal(signal.SIGINT, handler)
        for thread in trainer_threads():
            thread.join(TIMEOUT)

        assert not trainer_threads()
        assert 20 <= len(steps) < 20_000
        assert_same(trainer.train(TrainingRequest(SEQUENCES, seed=2)), before)


class TestFailures:
    """A failure ends the request that caused it, and no other."""

    def test_a_step_whose_loss_is_not_finite_is_dropped(self, poisoned: Trainer) -> None:
        sound = poisoned.train(TrainingRequest(SEQUENCES[:2], seed=4))

        training = poisoned.train(
            TrainingRequest([*SEQUENCES[:2], [1, POISON, 2], *SEQUENCES[2:]], seed=4)
        )

        assert (training.stop, training.sequences_used) == ("diverged", 2)
        assert training.losses == sound.losses
        assert training.adapter is not None
        assert sound.adapter is not None
        assert training.adapter.weights == sound.adapter.weights

    def test_a_first_step_that_diverges_gives_no_adapter(self, poisoned: Trainer) -> None:
        before = poisoned.train(TrainingRequest(SEQUENCES))

        training = poisoned.train(TrainingRequest([[POISON, 1, 2], *SEQUENCES]))

        after = poisoned.train(TrainingRequest(SEQUENCES))
        assert (training.adapter, training.losses, training.stop) == (None, (), "diverged")
        assert after.adapter is not None
        assert before.adapter is not None
        assert after.adapter.weights == before.adapter.weights

    def test_diverging_requests_do_not_affect_others(self, poisoned: Trainer) -> None:
        # Arrange: poisoned sequences have the length of the others, so that they share a batch.
        alone = [
            poisoned.train(TrainingRequest(sequences, seed=k))
            for k, sequences in enumerate(other_requests(4))
        ]
        bad = [
            [POISON if j == 5 else token for j, token in enumerate(sequence)]
            for sequence in SEQUENCES
        ]

        with recorded_rows(poisoned) as rows:
            with paused(poisoned):
                wrong = [
                    poisoned.submit(TrainingRequest(bad)),
                    poisoned.submit(TrainingRequest([*SEQUENCES[:2], *bad])),
                    poisoned.submit(TrainingRequest(bad, plan="batched")),
                    poisoned.submit(TrainingRequest([*SEQUENCES, *bad, *SEQUENCES], plan="reuse")),
                ]
                right = [
                    poisoned.submit(TrainingRequest(sequences, seed=k))
                    for k, sequences in enumerate(other_requests(4))
                ]
            trainings = [future.result(TIMEOUT) for future in right]
        for training, expected in zip(trainings, alone, strict=True):
            assert_same(training, expected)

        assert max(rows) > 4
        assert {future.result(TIMEOUT).stop for future in wrong} == {"diverged"}
        assert [len(future.result().losses) for future in wrong] == [0, 2, 0, 6]

    @pytest.mark.parametrize("learning_rate", [1e30, 1e38, 1e39])
    def test_an_enormous_learning_rate_never_gives_a_broken_adapter(
        self, tiny_llama: str, learning_rate: float
    ) -> None:
        trainer = trainer_of(tiny_llama, learning_rate=learning_rate)

        training = trainer.train(TrainingRequest(SEQUENCES))

        assert (training.adapter, training.stop) == (None, "diverged")

    def test_a_loss_far_worse_than_guessing_is_a_divergence(
        self, tiny_llama: str, tmp_path: Path
    ) -> None:
        # Arrange: a model that is confidently wrong has a large, but finite loss.
        shutil.copytree(tiny_llama, tmp_path / "model")
        weights = load_file(tmp_path / "model" / "model.safetensors")
        weights["lm_head.weight"] *= 20
        save_file(weights, tmp_path / "model" / "model.safetensors", metadata={"format": "pt"})
        trainer = trainer_of(str(tmp_path / "model"))
        assert 3 * math.log(128) < trainer.nats(SEQUENCES[0], 1) / 11 < 1_000

        training = trainer.train(TrainingRequest(SEQUENCES))

        assert (training.adapter, training.losses, training.stop) == (None, (), "diverged")

    def test_a_configured_learning_rate_of_zero_is_used(self, tiny_llama: str) -> None:
        trainer = trainer_of(tiny_llama, learning_rate=0.0)

        training = trainer.train(TrainingRequest([SEQUENCES[0]] * 3))

        assert trainer.learning_rate == 0.0
        assert not any(
            bool(tensor.any()) for name, tensor in weights_of(training).items() if "lora_B" in name
        )
        assert len(set(training.losses)) == 1

    def test_out_of_memory_ends_only_the_request_that_caused_it(self, trainer: Trainer) -> None:
        # Arrange: torch's own error for too large an allocation.
        bad = [*SEQUENCES[:2], [POISON] * 14, *SEQUENCES[2:]]
        expected = trainer.train(TrainingRequest(SEQUENCES[:2], seed=9))
        alone = [
            trainer.train(TrainingRequest(sequences, seed=k))
            for k, sequences in enumerate(other_requests(4))
        ]

        def allocate_too_much(_: torch.Tensor) -> None:
            torch.empty(1 << 46)

        # Act.
        with failing_on_poison(trainer, allocate_too_much):
            with paused(trainer):
                wrong = trainer.submit(TrainingRequest(bad, seed=9))
                at_once = trainer.submit(TrainingRequest([[POISON] * 13], seed=9))
                right = [
                    trainer.submit(TrainingRequest(sequences, seed=k))
                    for k, sequences in enumerate(other_requests(4))
                ]
            trainings = [future.result(TIMEOUT) for future in right]

        # Assert: the steps taken before give an adapter.
        for training, other in zip(trainings, alone, strict=True):
            assert_same(training, other)
        found, none = wrong.result(TIMEOUT), at_once.result(TIMEOUT)
        assert (found.stop, found.sequences_used, found.losses) == (
            "out-of-memory",
            2,
            expected.losses,
        )
        assert weights_of(found).keys() == weights_of(expected).keys()
        assert_close(weights_of(found), weights_of(expected), 1e-5)
        assert (none.adapter, none.losses, none.stop) == (None, (), "out-of-memory")
        assert_idle(trainer)

    def test_out_of_memory_at_the_export_ends_only_that_request(
        self, tiny_llama: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        trainer = trainer_of(tiny_llama)
        expected, export = (
            trainer.train(TrainingRequest(SEQUENCES, seed=9)),
            trainer._loop.bank.export,
        )
        exported: list[int] = []

        def fail_once(slot: int, **options: Any) -> bytes:
            exported.append(slot)
            return bytes(1 << 60) if len(exported) == 1 else export(slot, **options)

        monkeypatch.setattr(trainer._loop.bank, "export", fail_once)
        shorter, longer = (
            trainer.submit(TrainingRequest(SEQUENCES[:2], seed=8)),
            trainer.submit(TrainingRequest(SEQUENCES * 20, seed=9)),
        )
        training = shorter.result(TIMEOUT)

        assert (training.adapter, training.losses, training.stop) == (None, (), "out-of-memory")
        assert longer.result(TIMEOUT).adapter is not None
        assert_same(trainer.train(TrainingRequest(SEQUENCES, seed=9)), expected)
        assert_idle(trainer)

    def test_an_error_outside_of_steps_ends_all_requests_but_not_later_ones(
        self, tiny_llama: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        trainer = trainer_of(tiny_llama)
        expected, reset = (
            trainer.train(TrainingRequest(SEQUENCES, seed=9)),
            trainer._loop.bank.reset,
        )

        ready, again = threading.Event(), list[Future[TrainingResult]]()

        def fail_to_allocate(slot: int, seed: int) -> None:
            assert ready.wait(TIMEOUT)
            torch.empty(1 << 46)

        monkeypatch.setattr(trainer._loop.bank, "reset", fail_to_allocate)
        futures = [trainer.submit(TrainingRequest(sequences)) for sequences in other_requests(3)]
        # A callback may submit another request.
        futures[0].add_done_callback(
            lambda _: again.append(trainer.submit(TrainingRequest(SEQUENCES)))
        )
        ready.set()
        for future in futures:
            with pytest.raises(RuntimeError, match="can't allocate memory"):
                future.result(TIMEOUT)
        assert again[0].exception(TIMEOUT) is not None
        monkeypatch.setattr(trainer._loop.bank, "reset", reset)

        assert_same(trainer.train(TrainingRequest(SEQUENCES, seed=9)), expected)
        assert_idle(trainer)

    def test_a_request_fails_if_no_thread_can_start(
        self, tiny_llama: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        trainer = trainer_of(tiny_llama)

        def refuse(_: threading.Thread) -> None:
            raise RuntimeError("can't start new thread")

        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", refuse)
            with pytest.raises(RuntimeError, match="new thread"):
                trainer.submit(TrainingRequest(SEQUENCES))

        assert trainer.train(TrainingRequest(SEQUENCES)).stop == "steps"
        assert_idle(trainer)

    def test_checkpointed_steps_give_the_same_adapter(
        self, base: Base, base_trainer: Trainer
    ) -> None:
        expected = base_trainer.train(TrainingRequest(SEQUENCES, seed=2))
        memory = base_trainer._loop.memory
        limit = (
            memory.row_bytes(len(SEQUENCES[0])) + memory.checkpointed_bytes(len(SEQUENCES[-1]))
        ) // 2
        narrow = trainer_of(
            base.folder, targets=base.targets, learning_rate=5e-3, memory_bytes=limit
        )

        alone = narrow.train(TrainingRequest(SEQUENCES, seed=2))
        with recorded_rows(narrow) as rows:
            with paused(narrow):
                futures = [narrow.submit(TrainingRequest(SEQUENCES, seed=2)) for _ in range(4)]
            trainings = [future.result(TIMEOUT) for future in futures]

        assert set(rows) == {1}
        for training in (alone, *trainings):
            assert_same(training, expected)

    def test_a_sequence_that_never_fits_into_memory_ends_at_once(self, tiny_llama: str) -> None:
        trainer = trainer_of(tiny_llama, memory_bytes=60_000)
        short, long = [[1, 2, 3]] * 3, [list(range(64))]

        with paused(trainer):
            futures = [
                trainer.submit(TrainingRequest(sequences))
                for sequences in (short, [*short, *long], long)
            ]
        trainings = [future.result(TIMEOUT) for future in futures]

        assert [training.stop for training in trainings] == [
            "steps",
            "out-of-memory",
            "out-of-memory",
        ]
        assert trainings[2].adapter is None

    def test_a_step_that_fails_in_backward_leaves_no_trace(self, trainer: Trainer) -> None:
        # Arrange: backward fails after the last layers' gradients are computed.
        before = trainer.train(TrainingRequest(SEQUENCES, seed=6))
        alone = [
            trainer.train(TrainingRequest(sequences, seed=k))
            for k, sequences in enumerate(other_requests(3))
        ]
        bad = [*SEQUENCES[:3], [POISON] * 15]
        layer = trainer.base.model.base_model.layers[0]
        poisonous = False

        def detect(_: torch.nn.Module, arguments: tuple[torch.Tensor, ...]) -> None:
            nonlocal poisonous
            poisonous = bool((arguments[0] == POISON).any())

        def fail(_: torch.Tensor) -> None:
            raise RuntimeError("a broken kernel")

        def set_trap(_: torch.nn.Module, __: Any, output: torch.Tensor) -> None:
            if poisonous and output.requires_grad:
                output.register_hook(fail)  # type: ignore[no-untyped-call]

        hooks = [
            trainer.base.model.base_model.register_forward_pre_hook(detect),
            layer.register_forward_hook(set_trap),
        ]

        # Act.
        try:
            with paused(trainer):
                wrong = trainer.submit(TrainingRequest(bad, seed=7))
                right = [
                    trainer.submit(TrainingRequest(sequences, seed=k))
                    for k, sequences in enumerate(other_requests(3))
                ]
            with pytest.raises(RuntimeError, match="a broken kernel"):
                wrong.result(TIMEOUT)
            trainings = [future.result(TIMEOUT) for future in right]
        finally:
            for hook in hooks:
                hook.remove()

        # Assert.
        for training, expected in zip(trainings, alone, strict=True):
            assert_same(training, expected)
        after = trainer.train(TrainingRequest(SEQUENCES, seed=6))
        assert before.adapter is not None
        assert after.adapter is not None
        assert after.adapter.weights == before.adapter.weights
        assert_idle(trainer)

    @pytest.mark.parametrize("stop", ["steps", "seconds", "out-of-memory"])
    def test_a_failing_final_evaluation_ends_only_that_request(
        self, tiny_llama: str, stop: str
    ) -> None:
        # The final evaluation is a forward pass without gradients.
        trainer = trainer_of(tiny_llama)
        alone = trainer.train(TrainingRequest(SEQUENCES, seed=3))

        def fail_without_gradients(hidden: torch.Tensor) -> None:
            if not hidden.requires_grad:
                if stop == "out-of-memory":
                    torch.empty(1 << 46)
                raise RuntimeError("a broken kernel")

        with failing_on_poison(trainer, fail_without_gradients):
            with paused(trainer):
                wrong = trainer.submit(
                    TrainingRequest(
                        [[POISON] * 12] * (10_000 if stop == "seconds" else 2),
                        seconds=1.0 if stop == "seconds" else math.inf,
                    )
                )
                right = trainer.submit(TrainingRequest(SEQUENCES, seed=3))
            assert_same(right.result(TIMEOUT), alone)
            if stop == "out-of-memory":
                found = wrong.result(TIMEOUT)
                assert (found.adapter, found.stop) == (None, "out-of-memory")
            else:
                with pytest.raises(RuntimeError, match="a broken kernel"):
                    wrong.result(TIMEOUT)

        assert (
            trainer.submit(TrainingRequest(SEQUENCES, seed=3)).result(TIMEOUT).losses
            == alone.losses
        )

    @pytest.mark.parametrize("problem", [RuntimeError, SystemExit, KeyboardInterrupt])
    def test_an_on_step_that_raises_ends_only_its_request(
        self, tiny_llama: str, problem: type[BaseException]
    ) -> None:
        trainer = trainer_of(tiny_llama)
        alone = trainer.train(TrainingRequest(SEQUENCES, seed=3))

        def fail(progress: TrainingProgress) -> None:
            if progress.steps == 2:
                raise problem("a broken callback")

        with paused(trainer):
            wrong = trainer.submit(TrainingRequest(SEQUENCES), on_step=fail)
            right = trainer.submit(TrainingRequest(SEQUENCES, seed=3))

        assert_same(right.result(TIMEOUT), alone)
        with pytest.raises(problem):
            wrong.result(TIMEOUT)
        assert_idle(trainer)

    def test_two_hundred_random_requests_leave_no_trace(self, tiny_llama: str) -> None:
        # Arrange.
        trainer = trainer_of(tiny_llama, slots=5)
        alone = trainer.train(TrainingRequest(SEQUENCES, seed=12))
        before = count_jobs()
        random_ = random.Random(3)
        futures: list[tuple[str, Future[TrainingResult]]] = []

        def cancel_or_raise(
            kind: str, cancelled: threading.Event, step: int, progress: TrainingProgress
        ) -> None:
            if progress.steps == step and kind == "cancelled":
                cancelled.set()
            if progress.steps == step and kind == "raising":
                raise RuntimeError("a broken callback")

        # Act: submit them over about a second.
        for _ in range(200):
            kind = random_.choice(["steps", "steps", "seconds", "cancelled", "raising", "refused"])
            sequences = [
                [random_.randrange(97) for _ in range(random_.randint(2, 40))]
                for _ in range(random_.randint(0, 12))
            ]
            cancelled, step = threading.Event(), random_.randint(1, 4)
            if kind == "refused":
                with pytest.raises(ValueError, match="training sequence"):
                    trainer.submit(TrainingRequest([*sequences, [1]]))
                continue
            future = trainer.submit(
                TrainingRequest(
                    sequences,
                    seed=random_.randrange(1 << 30),
                    seconds=random_.choice([0.0, 0.001, 0.02, 0.1, 0.5])
                    if kind == "seconds"
                    else math.inf,
                    plan=random_.choice(PLANS),
                ),
                cancelled=cancelled,
                on_step=lambda progress, k=kind, c=cancelled, s=step: cancel_or_raise(
                    k, c, s, progress
                ),  # type: ignore[misc]
            )
            futures.append((kind, future))
            time.sleep(random_.choice([0.0, 0.0, 0.01]))
        sentinel = trainer.submit(TrainingRequest(SEQUENCES, seed=12))

        # Assert: each request ends in one of the expected ways, and the last one as if alone.
        stops: Counter[str] = Counter()
        for kind, future in futures:
            problem = future.exception(TIMEOUT)
            if problem is not None:
                assert kind == "raising"
                continue
            training = future.result()
            stops[training.stop] += 1
            assert training.stop in {"steps", kind}
            assert (training.adapter is None) == (
                not training.losses or training.stop == "cancelled"
            )
        assert {"steps", "seconds", "cancelled"} <= set(stops)
        assert_same(sentinel.result(TIMEOUT), alone)
        assert_idle(trainer)
        del future, futures, sentinel, problem, training
        assert count_jobs() <= before


def test_an_idle_trainer_releases_the_memory_of_its_slots(
    tiny_llama: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    released = threading.Event()
    monkeypatch.setattr("adapters.model.activation_memory.IDLE_SECONDS", 3600.0)
    trainer = trainer_of(tiny_llama)
    monkeypatch.setattr(trainer._loop.bank, "release", released.set)
    for _ in range(3):
        trainer.train(TrainingRequest([[1, 2, 3]]))
        for thread in trainer_threads():
            thread.join(TIMEOUT)
    timers = [thread for thread in threading.enumerate() if isinstance(thread, threading.Timer)]
    pending = [timer for timer in timers if timer.interval == 3600.0]
    released_while_busy = released.is_set()

    monkeypatch.setattr("adapters.model.activation_memory.IDLE_SECONDS", 0.0)
    trainer.train(TrainingRequest([[1, 2, 3]]))

    # Each submission cancels the timer of the idle time before it.
    assert len(pending) == 1
    assert not released_while_busy
    assert released.wait(TIMEOUT)
    assert pending[0].finished.is_set()


def test_a_trainer_that_only_compares_releases_it_too(
    tiny_llama: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    released = threading.Event()
    monkeypatch.setattr("adapters.model.activation_memory.IDLE_SECONDS", 0.0)
    trainer = trainer_of(tiny_llama)
    monkeypatch.setattr(trainer._loop.bank, "release", released.set)

    trainer.compare([Row.of([1, 2, 3])], [None])

    assert released.wait(TIMEOUT)
