"""Admission: the two bounds, and the steps shared under load."""

from __future__ import annotations

from contextlib import ExitStack

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.adaptation.admission import Admission, Capacity, TrainerLoad
from serving.errors import BusyError, RateLimitError, more_headers, to_http


def test_requests_beyond_the_bound_are_refused_until_one_has_ended() -> None:
    admission = Admission(Capacity(requests=2, adaptations=2))

    with ExitStack() as admitted:
        admitted.enter_context(admission.admit(adapts=False))
        with (
            admission.admit(adapts=True),
            pytest.raises(BusyError, match="2 requests are under way"),
        ):
            admitted.enter_context(admission.admit(adapts=False))
        admitted.enter_context(admission.admit(adapts=True))

    assert (admission.requests, admission.adaptations) == (0, 0)


def test_adaptations_beyond_their_bound_are_refused_while_the_base_model_still_answers() -> None:
    admission = Admission(Capacity(requests=8, adaptations=1))

    with admission.admit(adapts=True):
        with (
            pytest.raises(BusyError, match="1 adaptations are under way"),
            admission.admit(adapts=True),
        ):
            pass
        with admission.admit(adapts=False):
            pass


def test_a_request_that_falls_back_no_longer_counts_as_an_adaptation() -> None:
    admission = Admission(Capacity(requests=8, adaptations=1))

    with admission.admit(adapts=True) as end_adaptation:
        end_adaptation()
        end_adaptation()
        with admission.admit(adapts=True):
            assert (admission.requests, admission.adaptations) == (2, 1)
            with (
                pytest.raises(BusyError, match="1 adaptations are under way"),
                admission.admit(adapts=True),
            ):
                pass

    assert (admission.requests, admission.adaptations) == (0, 0)


def test_a_request_that_fails_no_longer_counts() -> None:
    admission = Admission(Capacity(requests=1))

    with pytest.raises(ZeroDivisionError), admission.admit(adapts=True):
        raise ZeroDivisionError

    with admission.admit(adapts=True):
        assert admission.adaptations == 1


def test_a_refusal_is_a_429_with_the_time_to_retry() -> None:
    admission = Admission(Capacity(requests=0))

    with pytest.raises(BusyError) as refused, admission.admit(adapts=False):
        pass

    status, body = to_http(refused.value)
    assert status == 429
    assert body["error"]["code"] == "server_busy"
    assert more_headers(refused.value) == [(b"retry-after", b"1"), (b"x-mayfly-full", b"requests")]
    assert to_http(RateLimitError("slower", 3.2))[0] == 429
    assert more_headers(RateLimitError("slower", 3.2)) == [(b"retry-after", b"4")]


def test_the_capacity_of_a_cpu_grows_with_its_cores() -> None:
    sizes = [Capacity.for_machine(cores, gpus=0) for cores in (1, 2, 8, 64)]

    assert sizes == [
        Capacity(8, 1, 1),
        Capacity(16, 2, 1),
        Capacity(64, 8, 4),
        Capacity(128, 16, 4),
    ]
    assert Capacity.for_machine(2, gpus=1) == Capacity()


@given(asked=st.integers(0, 1000), pending=st.integers(1, 300), undegraded=st.integers(1, 300))
def test_a_share_of_steps_is_at_least_one_and_at_most_the_steps_asked_for(
    asked: int, pending: int, undegraded: int
) -> None:
    steps = TrainerLoad(pending, undegraded).steps(asked)

    assert min(asked, 1) <= steps <= asked
    assert steps == asked or pending > undegraded
    assert steps * pending <= max(asked * undegraded, asked and pending) or pending <= undegraded


@given(arrivals=st.lists(st.booleans(), max_size=40))
def test_the_bounds_hold_for_any_sequence_of_requests(arrivals: list[bool]) -> None:
    capacity = Capacity(requests=7, adaptations=3, undegraded=2)
    admission = Admission(capacity)
    with ExitStack() as admitted:
        for adapts in arrivals:
            try:
                admitted.enter_context(admission.admit(adapts))
            except BusyError:
                assert admission.requests == 7 or admission.adaptations == 3
            assert admission.requests <= 7
            assert admission.adaptations <= 3
    assert admission.requests == admission.adaptations == 0
