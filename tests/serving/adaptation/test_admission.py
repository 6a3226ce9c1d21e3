"""Admission: two bounds that are never passed, places that come back, and steps shared while many
are under way.
"""

from __future__ import annotations

from contextlib import ExitStack

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.adaptation.admission import Admission, Capacity, Place
from serving.errors import BusyError, RateLimitError, more_headers, to_http


def test_requests_beyond_the_bound_are_refused_until_one_has_ended() -> None:
    admission = Admission(Capacity(requests=2, adaptations=2))

    with ExitStack() as house:
        house.enter_context(admission.admit(adapts=False))
        with (
            admission.admit(adapts=True),
            pytest.raises(BusyError, match="2 requests are under way"),
        ):
            house.enter_context(admission.admit(adapts=False))
        house.enter_context(admission.admit(adapts=True))

    assert (admission.requests, admission.adaptations, admission.rejected) == (0, 0, 1)


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


def test_a_place_among_adaptations_comes_back_once_there_will_be_no_adapter() -> None:
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


def test_a_place_comes_back_when_the_request_fails() -> None:
    admission = Admission(Capacity(requests=1))

    with pytest.raises(ZeroDivisionError), admission.admit(adapts=True):
        raise ZeroDivisionError

    with admission.admit(adapts=True):
        assert admission.adaptations == 1


def test_a_refusal_is_a_429_that_says_when_to_come_back() -> None:
    admission = Admission(Capacity(requests=0))

    with pytest.raises(BusyError) as refused, admission.admit(adapts=False):
        pass

    status, body = to_http(refused.value)
    assert status == 429
    assert body["error"]["code"] == "server_busy"
    assert more_headers(refused.value) == [(b"retry-after", b"1"), (b"x-mayfly-full", b"requests")]
    assert to_http(RateLimitError("slower", 3.2))[0] == 429
    assert more_headers(RateLimitError("slower", 3.2)) == [(b"retry-after", b"4")]


def test_a_cpu_takes_on_little_and_more_with_its_cores() -> None:
    sizes = [Capacity.of(cores, gpus=0) for cores in (1, 2, 8, 64)]

    assert sizes == [
        Capacity(8, 1, 1),
        Capacity(16, 2, 1),
        Capacity(64, 8, 4),
        Capacity(128, 16, 4),
    ]
    assert Capacity.of(2, gpus=1) == Capacity()


@given(wished=st.integers(0, 1000), learning=st.integers(1, 300), undegraded=st.integers(1, 300))
def test_steps_are_shared_never_more_than_wished_and_never_none_of_some(
    wished: int, learning: int, undegraded: int
) -> None:
    steps = Place(learning, undegraded).steps(wished)

    assert min(wished, 1) <= steps <= wished
    assert steps == wished or learning > undegraded
    assert (
        steps * learning <= max(wished * undegraded, wished and learning) or learning <= undegraded
    )


@given(arrivals=st.lists(st.booleans(), max_size=40))
def test_the_bounds_hold_whoever_comes(arrivals: list[bool]) -> None:
    capacity = Capacity(requests=7, adaptations=3, undegraded=2)
    admission = Admission(capacity)
    with ExitStack() as house:
        for adapts in arrivals:
            try:
                house.enter_context(admission.admit(adapts))
            except BusyError:
                assert admission.requests == 7 or admission.adaptations == 3
            assert admission.requests <= 7
            assert admission.adaptations <= 3
    assert admission.requests == admission.adaptations == 0
