"""Training on some tokens of each sequence: equal to PEFT with a masked loss, in any batch and
whatever else happens to the request.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from adapters.model.row import Row, Spans
from adapters.step_plan import BATCH, PLANS, REFRESH
from adapters.trainer import Trainer
from adapters.training import Probe, TrainingProgress, TrainingRequest
from tests.adapters.peft_reference import Base, PeftReference, assert_close, first_weights
from tests.adapters.trainers import (
    SEQUENCES,
    TIMEOUT,
    assert_same,
    other_requests,
    paused,
    recorded_rows,
    trainer_of,
    weights_of,
)

# For each of SEQUENCES: an answer at the end, turns, a single token, everything.
_SCORED: list[Spans | None] = [
    ((8, 12),),
    ((2, 5), (9, 13)),
    ((13, 14),),
    None,
    ((1, 2), (2, 3), (10, 11)),
    ((4, 12),),
]
_ROWS = [Row.of(tokens, spans) for tokens, spans in zip(SEQUENCES, _SCORED, strict=True)]


def masked(rows: list[Row], **options: Any) -> TrainingRequest:
    return TrainingRequest(
        [row.tokens for row in rows], scored=[row.scored for row in rows], **options
    )


class TestEquivalence:
    """An adapter equals that of PEFT with the other tokens' labels ignored."""

    def test_alone_and_in_a_batch(self, base: Base, base_trainer: Trainer) -> None:
        # Arrange.
        plain = PeftReference(base, first_weights(base, seed=21))
        for row in _ROWS:
            plain.step(*plain.gradients(row))

        # Act: beside others, of which some score all tokens.
        alone = base_trainer.train(masked(_ROWS, seed=21))
        with recorded_rows(base_trainer) as rows:
            with paused(base_trainer):
                beside = [
                    base_trainer.submit(request)
                    for request in (
                        *(
                            TrainingRequest(theirs, seed=k)
                            for k, theirs in enumerate(other_requests(2))
                        ),
                        masked(_ROWS[::-1], seed=5),
                    )
                ]
                mine = base_trainer.submit(masked(_ROWS, seed=21))
            together = mine.result(TIMEOUT)

        # Assert.
        assert max(rows) == 4
        assert alone.losses == pytest.approx(plain.losses, rel=1e-4)
        assert_close(weights_of(alone), plain.weights)
        assert_close(weights_of(together), plain.weights)
        assert_same(together, alone)
        assert all(future.result(TIMEOUT).stop == "steps" for future in beside)

    def test_batched_steps(self, base: Base, base_trainer: Trainer) -> None:
        # Each sequence counts the same, however many of its tokens are scored.
        plain = PeftReference(base, first_weights(base, seed=3))
        for start in range(0, len(_ROWS), BATCH):
            plain.step(*plain.gradients(*_ROWS[start : start + BATCH]))

        training = base_trainer.train(masked(_ROWS, seed=3, plan="batched"))

        assert training.losses == pytest.approx(plain.losses, rel=1e-4)
        assert_close(weights_of(training), plain.weights)

    def test_a_gradient_is_reused_only_for_the_same_tokens_scored(
        self, base: Base, base_trainer: Trainer
    ) -> None:
        tokens = SEQUENCES[0]
        a, b, c = (Row.of(tokens, spans) for spans in (((8, 12),), ((3, 5),), None))
        repeated = [a, b, a, c, a, a, b, c]
        plain = PeftReference(base, first_weights(base, seed=4))
        times: Counter[Row] = Counter()
        kept: dict[Row, Any] = {}
        for row in repeated:
            if times[row] % REFRESH == 0:
                kept[row] = plain.gradients(row)
            times[row] += 1
            plain.step(*kept[row])

        with recorded_rows(base_trainer) as rows:
            training = base_trainer.train(masked(repeated, seed=4, plan="reuse"))

        assert len(rows) == 4
        assert training.losses == pytest.approx(plain.losses, rel=1e-4)
        assert_close(weights_of(training), plain.weights)


@pytest.mark.parametrize("plan", PLANS)
def test_all_tokens_scored_is_the_same_as_no_mask(trainer: Trainer, plan: str) -> None:
    sequences = SEQUENCES[:3] * 2
    plain = trainer.train(TrainingRequest(sequences, seed=1, plan=plan))

    for scored in ([None] * 6, [((1, len(sequence)),) for sequence in sequences]):
        request = TrainingRequest(sequences, seed=1, plan=plan, scored=scored)
        training = trainer.train(request)

        assert training.losses == plain.losses
        assert training.adapter is not None
        assert plain.adapter is not None
        assert training.adapter.weights == plain.adapter.weights


@settings(
    deadline=None, max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.integers(1, 11), st.integers(1, 11), st.lists(st.integers(0, 96), max_size=20))
def test_tokens_after_the_last_scored_one_change_nothing(
    trainer: Trainer, one: int, other: int, after: list[int]
) -> None:
    start, end = min(one, other), max(one, other) + 1
    short = Row.of(SEQUENCES[0][:end], ((start, end),))
    long = Row.of([*short.tokens, *after], short.scored)

    assert_same(
        trainer.train(masked([long] * 2, seed=2)), trainer.train(masked([short] * 2, seed=2))
    )


class TestWhateverHappens:
    """A masked training is the same however it is carried out."""

    def test_checkpointed_steps(self, base: Base, base_trainer: Trainer) -> None:
        narrow = trainer_of(base.folder, targets=base.targets, learning_rate=5e-3, memory_bytes=1)
        memory = narrow._loop.memory
        memory.limit = memory.checkpointed_bytes(len(_ROWS[-1]))
        assert not memory.fits(1, len(_ROWS[0]))

        assert_same(narrow.train(masked(_ROWS, seed=2)), base_trainer.train(masked(_ROWS, seed=2)))

    def test_preempted_with_a_probe(self, tiny_llama: str) -> None:
        trainer = trainer_of(tiny_llama, slots=1)
        request = masked(_ROWS * 3, seed=3, probe=Probe(tuple(SEQUENCES[0]), 1e-9))
        alone = trainer.train(request)
        urgent = []

        def submit_urgent(progress: TrainingProgress) -> None:
            if progress.steps == 5:
                urgent.append(trainer.submit(masked(_ROWS[::-1], seed=4, seconds=TIMEOUT)))

        preempted = trainer.train(request, on_step=submit_urgent)

        assert urgent[0].result(TIMEOUT).stop == "steps"
        assert len(alone.probe_losses) > 3
        assert_same(preempted, alone)
        assert preempted.adapter_sequences == alone.adapter_sequences

    def test_the_loss_on_scored_tokens_falls_and_is_that_of_nats(self, trainer: Trainer) -> None:
        row = _ROWS[1]
        before = trainer.nats(row.tokens, row.scored)

        training = trainer.train(masked([row] * 100))

        assert training.adapter is not None
        after = trainer.nats(row.tokens, row.scored, training.adapter.weights)
        assert training.losses[0] == pytest.approx(before / row.scored_tokens, rel=1e-5)
        assert after < 0.5 * before
        assert trainer.would_generate(row.tokens, row.scored, training.adapter.weights)
        assert not trainer.would_generate(row.tokens, row.scored)
        assert trainer.nats(row.tokens, 9) == trainer.nats(row.tokens, ((9, len(row)),))


class TestRefusals:
    """Invalid ranges are refused before anything is submitted."""

    @pytest.mark.parametrize(
        "spans", [(), ((0, 3),), ((4, 4),), ((1, 4), (3, 6)), ((5, 6), (2, 3)), ((3, 13),)]
    )
    def test_invalid_ranges(self, trainer: Trainer, spans: Spans) -> None:
        with pytest.raises(ValueError, match="score"):
            TrainingRequest(SEQUENCES[:2], scored=[spans, None])
        with pytest.raises(ValueError, match="score"):
            trainer.nats(SEQUENCES[0], spans)

    @pytest.mark.parametrize("count", [1, 3])
    def test_another_number_than_sequences(self, count: int) -> None:
        with pytest.raises(ValueError, match=f"given for {count} sequences, and there are 2"):
            TrainingRequest(SEQUENCES[:2], scored=[None] * count)

    @pytest.mark.parametrize("start", [0, 12, 13])
    def test_a_first_scored_token_out_of_range(self, trainer: Trainer, start: int) -> None:
        with pytest.raises(ValueError, match=rf"cannot score tokens \[{start}, 12\)"):
            trainer.nats(SEQUENCES[0], start)
