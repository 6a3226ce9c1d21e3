"""The scheduler: most urgent first, deadlines met, no request starved."""

from __future__ import annotations

import math
import random
import threading
from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adapters.early_stopping import EarlyStopping
from adapters.loop.job import PATIENCE, Job
from adapters.loop.scheduler import Scheduler
from adapters.step_time import TrainingTimes
from adapters.training import Probe, TrainingRequest, TrainingStop

# Seconds of a step, and of each of its tokens.
_FIXED, _EACH = 0.01, 1e-4
# Time of an evaluation relative to a step of the same tokens.
_EVALUATION = 0.3


def times() -> TrainingTimes:
    """Times of steps and evaluations on a machine without noise."""
    times = TrainingTimes()
    for tokens in (64, 256, 64, 256):
        times.step.observe(tokens, _FIXED + _EACH * tokens)
        times.probe.observe(tokens, _EVALUATION * (_FIXED + _EACH * tokens))
        times.final.observe(tokens, _EVALUATION * (_FIXED + _EACH * tokens))
    return times


def scheduler_of(slots: int = 8, max_tokens: int = 2048) -> Scheduler:
    return Scheduler(slots, max_tokens, times())


def job(
    lengths: Sequence[int],
    arrived: float = 0.0,
    seconds: float = math.inf,
    plan: str = "sequential",
    cancelled: threading.Event | None = None,
    background: bool = False,
) -> Job:
    sequences = [list(range(length)) for length in lengths]
    request = TrainingRequest(sequences, seconds=seconds, plan=plan, background=background)
    return Job(request, arrived, cancelled)


def scheduler_with(*jobs: Job, slots: int = 8, max_tokens: int = 2048) -> Scheduler:
    schedule = scheduler_of(slots, max_tokens)
    for one in jobs:
        schedule.add(one)
    schedule.admit()
    return schedule


def padded_and_real(jobs: Sequence[Job]) -> tuple[int, int]:
    """Tokens of a batch, with and without padding."""
    lengths = [len(row) for one in jobs for row in one.rows]
    return len(lengths) * max(lengths, default=0), sum(lengths)


def take_step(jobs: Sequence[Job]) -> float:
    """Take a step of each job, and return its seconds."""
    padded, _ = padded_and_real(jobs)
    for one in jobs:
        one.sequences_used += len(one.step.sequences)
        one.losses.append(1.0)
    return _FIXED + _EACH * padded


class TestBatches:
    """The jobs that take a step together."""

    def test_sequences_of_similar_length_share_a_batch(self) -> None:
        jobs = [job([100]), job([90]), job([80])]

        assert scheduler_with(*jobs).batch(0.0) == jobs

    def test_the_most_urgent_is_in_the_batch_and_others_as_they_fit(self) -> None:
        late, soon, between = job([100], seconds=9), job([30], seconds=1), job([28], seconds=5)

        assert scheduler_with(late, soon, between).batch(0.0) == [soon, between]

    def test_no_more_than_a_quarter_is_padding(self) -> None:
        assert len(scheduler_with(job([100]), job([50])).batch(0.0)) == 2
        assert len(scheduler_with(job([100]), job([49])).batch(0.0)) == 1

    def test_a_batch_exceeds_its_tokens_only_for_a_single_request(self) -> None:
        assert (
            len(scheduler_with(job([100]), job([100]), job([100]), max_tokens=200).batch(0.0)) == 2
        )
        assert len(scheduler_with(job([300]), job([300]), max_tokens=200).batch(0.0)) == 1

    def test_a_batch_exceeds_memory_only_for_a_single_request(self) -> None:
        checked: list[tuple[int, int]] = []

        def holds(rows: int, tokens: int) -> bool:
            checked.append((rows, tokens))
            return rows < 3

        schedule = Scheduler(8, 2048, times(), holds)
        for one in (job([90]), job([100]), job([95]), job([80] * 3, plan="batched")):
            schedule.add(one)
        schedule.admit()

        assert len(schedule.batch(0.0)) == 2
        assert checked == [(2, 100), (3, 100), (5, 100)]

    def test_no_request_joins_that_would_make_another_late(self) -> None:
        # Alone the urgent one's step takes 20 ms and its ending 6; with the other 30, and 6.
        tight, ample = job([100], seconds=0.028), job([100], seconds=0.1)

        assert scheduler_with(tight, job([100])).batch(0.0) == [tight]
        assert len(scheduler_with(ample, job([100])).batch(0.0)) == 2

    def test_a_step_with_a_reused_gradient_fits_any_batch(self) -> None:
        again, short = job([10, 10], plan="reuse"), job([100] * 2, arrived=1.0)
        schedule = scheduler_with(again, short)
        take_step([again])

        assert again.rows == []
        assert schedule.batch(1.0) == [again, short]

    def test_a_batched_step_has_all_its_rows(self) -> None:
        many = job([20] * 7, plan="batched")

        assert padded_and_real(scheduler_with(many, job([20])).batch(0.0)) == (120, 120)

    def test_an_empty_scheduler_chooses_nothing(self) -> None:
        assert scheduler_of().batch(0.0) == []
        assert scheduler_of().finished(0.0) == []
        assert scheduler_of().admit() == []


class TestSlots:
    """A slot belongs to one job while it trains."""

    def test_the_most_urgent_get_them(self) -> None:
        jobs = [job([10]), job([10], seconds=3), job([10], seconds=1), job([10], seconds=2)]
        schedule = scheduler_of(slots=2)
        for one in jobs:
            schedule.add(one)

        assert schedule.admit() == [jobs[2], jobs[3]]
        assert [one.slot for one in jobs] == [None, None, 0, 1]
        assert schedule.admit() == []

    def test_a_removed_request_frees_its_slot(self) -> None:
        first, second = job([10]), job([10], arrived=1.0)
        schedule = scheduler_with(first, second, slots=1)

        schedule.remove(first)

        assert (first.slot, len(schedule)) == (None, 1)
        assert schedule.admit() == [second]
        assert second.assigned_slot == 0

    def test_a_waiting_request_can_be_removed(self) -> None:
        first, second = job([10]), job([10], arrived=1.0)
        schedule = scheduler_with(first, second, slots=1)

        schedule.remove(second)

        assert len(schedule) == 1
        assert first.slot == 0


class TestFinishing:
    """The jobs that take no further step, and why."""

    def test_all_steps_are_taken(self) -> None:
        one = job([10])
        schedule = scheduler_with(one)
        assert schedule.finished(0.0) == []

        take_step([one])

        assert schedule.finished(0.0) == [(one, "steps")]

    def test_no_steps_to_take(self) -> None:
        one = job([])

        assert scheduler_with(one).finished(0.0) == [(one, "steps")]

    @pytest.mark.parametrize("slots", [1, 8])
    def test_no_time_for_another_step_and_the_final_evaluation(self, slots: int) -> None:
        # Also of those that wait. A step of 100 tokens takes 20 ms, its ending 6.
        first, second = job([100] * 2, seconds=1.0), job([100] * 2, arrived=0.5, seconds=1.0)
        schedule = scheduler_with(first, second, slots=slots)

        assert schedule.finished(0.97) == []
        assert schedule.finished(0.98) == [(first, "seconds")]
        assert schedule.finished(1.48) == [(first, "seconds"), (second, "seconds")]

    @pytest.mark.parametrize("slots", [1, 8])
    def test_cancelled(self, slots: int) -> None:
        cancelled = threading.Event()
        first, second = (
            job([10], cancelled=threading.Event()),
            job([10], arrived=1.0, cancelled=cancelled),
        )
        schedule = scheduler_with(first, second, slots=slots)

        cancelled.set()

        assert schedule.finished(0.0) == [(second, "cancelled")]

    def test_cancelled_takes_precedence(self) -> None:
        cancelled = threading.Event()
        cancelled.set()
        one = job([10], seconds=-1.0, cancelled=cancelled)
        take_step([one])

        assert scheduler_with(one).finished(5.0) == [(one, "cancelled")]


class TestTheFirstStep:
    """The first step is refused only if such steps typically do not fit."""

    @staticmethod
    def uneven() -> TrainingTimes:
        """Times of a machine on which one step in five takes four times as long as typical."""
        times = TrainingTimes()
        for n in range(60):
            for each, share in (
                (times.step, 1.0),
                (times.probe, _EVALUATION),
                (times.final, _EVALUATION),
            ):
                for tokens in (64, 256):
                    each.observe(
                        tokens, share * (_FIXED + _EACH * tokens) * (4 if n % 5 == 0 else 1)
                    )
        return times

    def test_it_is_taken_if_it_typically_fits_but_no_further_one_is(self) -> None:
        times = self.uneven()
        typical = times.step.mean(100) + times.final.mean(100)
        one = job([100] * 5, seconds=1.1 * typical)
        schedule = Scheduler(8, 2048, times)
        schedule.add(one)
        schedule.admit()

        assert times.step.upper(100) > one.deadline
        assert schedule.finished(0.0) == []
        take_step([one])

        assert schedule.finished(0.0) == [(one, "seconds")]

    def test_it_is_refused_if_it_typically_does_not_fit(self) -> None:
        times = self.uneven()
        one = job([100] * 5, seconds=0.9 * (times.step.mean(100) + times.final.mean(100)))
        schedule = Scheduler(8, 2048, times)
        schedule.add(one)

        assert schedule.finished(0.0) == [(one, "seconds")]

    def test_the_probe_is_dropped_rather_than_the_step(self) -> None:
        # For 100 tokens; the final evaluation has two rows with a probe, or takes 6 ms without.
        step, probe, final = 0.02, 0.006, 0.012
        for seconds, has_probe in (
            (step + probe + final, True),
            (step + probe + final - 0.004, False),
        ):
            one = job([100] * 5, seconds=seconds + 1e-6)
            one.probe = Probe(tuple(range(100)))
            schedule = scheduler_with(one)

            assert schedule.finished(0.0) == []
            assert (one.probe is not None) == has_probe


def test_a_probe_evaluation_counts_towards_the_seconds() -> None:
    one = job([100] * 5, seconds=0.0)
    one.probe = Probe(tuple(range(100)), 1e-9)
    one.stopping = EarlyStopping(1e-9)
    schedule = scheduler_with(one)
    one.stopping.record(0, 0, 2.0)
    take_step([one])

    # The second step takes 20 ms, its probe evaluation 6 ms; the final evaluation has two rows.
    fits = 0.02 + 0.006 + _EVALUATION * (_FIXED + _EACH * 200)
    one.deadline = fits + 1e-6
    assert schedule.finished(0.0) == []
    one.deadline = fits - 1e-6
    assert schedule.finished(0.0) == [(one, "seconds")]


def test_the_comparison_of_a_start_counts_as_another_evaluation() -> None:
    probe = Probe(tuple(range(100)))
    request = TrainingRequest([list(range(100))], start=b"", start_if_better=True, probe=probe)
    # A step takes 20 ms, the evaluations 9 ms together; the final evaluation has two rows.
    fits = 0.02 + 2 * _EVALUATION * (_FIXED + _EACH * 200)
    for seconds, has_probe in ((fits + 1e-6, True), (fits - 1e-6, False)):
        one = Job(replace(request, seconds=seconds), 0.0)

        assert scheduler_with(one).finished(0.0) == []
        assert (one.probe is not None, one.comparison_due) == (has_probe, has_probe)


one_request = st.tuples(
    st.lists(st.integers(2, 300), max_size=6),
    # Seconds after the arrival of the one before.
    st.floats(0, 1.0),
    st.sampled_from([-1.0, 0.0, 0.02, 0.1, 0.5, 3.0, math.inf]),
    st.sampled_from(["sequential", "batched", "reuse"]),
    # Whether it is cancelled at some time.
    st.booleans(),
)
requests = st.lists(one_request, max_size=20)


@settings(deadline=None)
@given(requests, st.integers(1, 4), st.sampled_from([64, 512, 2048]), st.integers(0, 2**16))
def test_invariants_hold_for_any_requests(
    pairs: list[tuple[list[int], float, float, str, bool]], slots: int, max_tokens: int, seed: int
) -> None:
    # Arrange.
    random_ = random.Random(seed)
    schedule, now, arrived = scheduler_of(slots, max_tokens), 0.0, 0.0
    upcoming: list[Job] = []
    for lengths, after, seconds, how, is_cancelled in pairs:
        arrived += after
        upcoming.append(
            job(lengths, arrived, seconds, how, threading.Event() if is_cancelled else None)
        )
    everyone, active = list(upcoming), set[Job]()
    stops: dict[Job, TrainingStop] = {}

    # Act, as the trainer does, with a clock of its own.
    while upcoming or len(schedule):
        if not len(schedule):
            now = max(now, upcoming[0].arrived)
        while upcoming and upcoming[0].arrived <= now:
            schedule.add(upcoming.pop(0))
        admitted = schedule.admit()
        active |= set(admitted)

        # Assert: a slot is one's own, and none is empty while anyone waits.
        taken = [one.assigned_slot for one in active]
        assert len(set(taken)) == len(taken)
        assert set(taken) <= set(range(slots))
        assert len(active) == min(slots, len(schedule))

        finished = schedule.finished(now)
        for one, stop in finished:
            assert one not in stops
            stops[one] = stop
            schedule.remove(one)
            active.discard(one)
        if finished:
            now += 0.001
            continue
        batch = schedule.batch(now)
        assert batch
        assert len(set(batch)) == len(batch)
        assert set(batch) <= active
        assert batch[0].due == min(one.due for one in active)
        padded, real = padded_and_real(batch)
        if len(batch) > 1:
            assert padded <= max_tokens
            assert padded - real <= padded / 4
        for one in random_.sample(everyone, min(1, len(everyone))):
            if one.cancelled is not None and one in active:
                one.cancelled.set()
        now += take_step(batch)
        longest = max(max(map(len, one.sequences)) for one in batch)
        ending = _EVALUATION * (_FIXED + _EACH * longest)
        assert all(now + ending <= one.deadline + 1e-6 for one in batch)

    # Assert: everyone ended in one of their ways, and all slots are free.
    assert stops.keys() == set(everyone)
    for one, stop in stops.items():
        assert (stop == "steps") == (len(one.losses) == len(one.steps)) or stop == "cancelled"
        assert stop != "seconds" or one.deadline < math.inf
        assert stop != "cancelled" or one.cancelled is not None
    for _ in range(slots):
        schedule.add(job([5]))
    assert len(schedule.admit()) == slots


@pytest.mark.parametrize("slots", [1, 2, 8])
@pytest.mark.parametrize("length", [20, 100])
def test_a_request_without_a_deadline_is_not_starved_by_urgent_ones(
    slots: int, length: int
) -> None:
    # Arrange: every twentieth of a second one comes who wants 20 steps within a second: more than
    # can be done.
    schedule, now, next_one = scheduler_of(slots, max_tokens=100), 0.0, 0.0
    patient = job([length] * 10)
    schedule.add(patient)

    # Act.
    while len(patient.losses) < 10:
        assert now < 2 * PATIENCE
        while next_one <= now:
            schedule.add(job([100] * 20, arrived=next_one, seconds=1.0))
            next_one += 0.05
        schedule.admit()
        for one, _ in schedule.finished(now):
            schedule.remove(one)
        now += take_step(schedule.batch(now)) if len(schedule) else 0.01

    # Assert: it had its turn about when its patience was at its end.
    assert now <= PATIENCE + 2.0


def test_an_urgent_request_is_not_starved_by_long_ones() -> None:
    # Seven others have all the time, and sequences that do not go together with short ones.
    schedule, now = scheduler_with(*(job([300] * 50) for _ in range(7))), 1.0
    urgent = job([20] * 20, arrived=1.0, seconds=1.0)
    schedule.add(urgent)
    schedule.admit()

    while not (finished := dict(schedule.finished(now))):
        now += take_step(schedule.batch(now))

    assert finished == {urgent: "steps"}


class TestPreemption:
    def test_the_least_urgent_is_preempted_and_continues_later(self) -> None:
        patient, deadlined, urgent = (
            job([100] * 9, arrived=1.0),
            job([100] * 9, seconds=5.0),
            job([100], 2.0, 1.0),
        )
        schedule = Scheduler(2, 2048, times())
        for one in (patient, deadlined):
            schedule.add(one)
        schedule.admit()
        schedule.add(urgent)

        assert schedule.preempt() == [(patient, 1)]
        assert schedule.admit() == [urgent]
        assert (patient.slot, urgent.slot) == (None, 1)

        schedule.remove(urgent)
        assert schedule.preempt() == []
        assert schedule.admit() == [patient]

    def test_no_request_is_preempted_for_a_less_urgent_one_or_with_free_slots(self) -> None:
        first, later = job([100], arrived=1.0), job([100], arrived=2.0)
        schedule = Scheduler(1, 2048, times())
        schedule.add(first)
        assert schedule.preempt() == []
        schedule.admit()
        schedule.add(later)

        assert schedule.preempt() == []
        assert schedule.admit() == []


class TestBackground:
    """A job in the background gives way to all others."""

    def test_it_takes_its_steps_alone(self) -> None:
        first, second = job([100] * 2, background=True), job([100] * 2, 1.0, background=True)
        schedule = scheduler_with(first, second)

        assert schedule.batch(1.0) == [first]
        take_step([first])
        assert schedule.batch(1.0) == [first]
        schedule.remove(first)
        assert schedule.batch(1.0) == [second]

    def test_it_joins_no_batch_of_others(self) -> None:
        one, background, other = job([100]), job([100], background=True), job([100], 1.0)

        assert scheduler_with(one, background, other).batch(1.0) == [one, other]

    def test_no_step_begins_before_the_time_it_gives_way_until(self) -> None:
        background, other = job([100], background=True), job([100], arrived=3.0)
        schedule = scheduler_with(background)
        schedule.give_way_until(5.0)
        schedule.give_way_until(4.0)

        assert (schedule.batch(4.9), schedule.background_wait(4.0)) == ([], 1.0)
        assert (schedule.batch(5.0), schedule.background_wait(5.0)) == ([background], 0.0)
        schedule.add(other)
        schedule.admit()
        assert (schedule.batch(4.0), schedule.background_wait(9.0)) == ([other], math.inf)

    def test_it_ends_when_it_may_compute_unless_it_is_cancelled(self) -> None:
        # Its final evaluation would delay the other one.
        cancelled = threading.Event()
        background, other = job([100], cancelled=cancelled, background=True), job([100])
        schedule = scheduler_with(background, other)
        take_step([background])

        assert schedule.finished(0.0) == []
        schedule.remove(other)
        assert schedule.finished(0.0) == [(background, "steps")]
        schedule.give_way_until(1.0)
        assert schedule.finished(0.0) == []
        cancelled.set()
        assert schedule.finished(0.0) == [(background, "cancelled")]

    def test_its_time_limit_keeps_no_other_from_a_batch(self) -> None:
        background, *others = job([100], seconds=0.021, background=True), job([100]), job([100])

        assert scheduler_with(background, *others).batch(0.0) == others

    def test_it_is_preempted_for_its_slot_alone(self) -> None:
        background, early, late = job([10], background=True), job([10], 1.0), job([10], 2.0)
        schedule = scheduler_with(background, early, slots=2)
        assert schedule.preempt() == []
        schedule.add(late)

        assert schedule.preempt() == [(background, 1)]
        assert schedule.admit() == [late]
        schedule.add(job([10], arrived=3.0, background=True))
        assert schedule.preempt() == []


@settings(deadline=None)
@given(
    st.lists(st.tuples(one_request, st.booleans()), max_size=15),
    st.lists(st.tuples(st.floats(0, 5.0), st.floats(0, 2.0)), max_size=3),
    st.integers(1, 4),
)
def test_no_job_ever_waits_for_more_than_one_background_step(
    pairs: list[tuple[tuple[list[int], float, float, str, bool], bool]],
    pauses: list[tuple[float, float]],
    slots: int,
) -> None:
    # Arrange.
    schedule, now, arrived, free_from = scheduler_of(slots), 0.0, 0.0, 0.0
    upcoming: list[Job] = []
    for (lengths, after, seconds, how, is_cancelled), background in pairs:
        arrived += after
        cancelled = threading.Event() if is_cancelled else None
        upcoming.append(job(lengths, arrived, seconds, how, cancelled, background))
    everyone = list(upcoming)
    pauses = sorted(pauses)

    # Act, as the trainer does, with a clock of its own.
    while upcoming or len(schedule):
        if not len(schedule):
            now = max(now, upcoming[0].arrived)
        while upcoming and upcoming[0].arrived <= now:
            schedule.add(upcoming.pop(0))
        while pauses and pauses[0][0] <= now:
            schedule.give_way_until(now + pauses[0][1])
            free_from = max(free_from, now + pauses.pop(0)[1])
        foreground = {one for one in everyone if one.arrived <= now and not one.request.background}
        assert foreground or not schedule.preempt()
        schedule.preempt()
        schedule.admit()
        finished = schedule.finished(now)
        for one, stop in finished:
            schedule.remove(one)
            everyone.remove(one)
            # A final evaluation is due.
            if one.request.background and stop != "cancelled":
                assert now >= free_from
                assert all(each.request.background or each.arrived > now for each in everyone)
        if finished:
            continue
        batch = schedule.batch(now)

        # Assert: the background computes when nobody else is there, and only then.
        if foreground:
            assert batch
            assert set(batch) <= foreground
        elif now < free_from:
            assert batch == []
            now = min([free_from, *(one.arrived for one in upcoming), *(at for at, _ in pauses)])
            continue
        else:
            assert len(batch) == 1
        now += take_step(batch)
        for one in batch:
            if one.cancelled is not None:
                one.cancelled.set()

    assert everyone == []
