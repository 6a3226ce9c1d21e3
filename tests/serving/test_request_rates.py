"""Request rates: each key has its own, in one process or in all servers of a database."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

import pytest

from selection.location import DatabaseLocation
from serving import request_rates
from serving.errors import RateLimitError
from serving.request_rates import LocalRates, SharedRates, rates_at


class Clock:
    """A clock that is set."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


async def test_a_key_is_limited_in_requests_a_minute_and_told_when_to_retry() -> None:
    clock = Clock()
    rates = LocalRates(clock)
    for _ in range(120):
        await rates.count("alice", 120)

    with pytest.raises(RateLimitError, match="limited to 120 requests a minute") as refused:
        await rates.count("alice", 120)

    assert refused.value.retry_after == pytest.approx(0.5)
    await rates.count("bob", 1)
    await rates.count("carol", None)
    clock.now += refused.value.retry_after
    await rates.count("alice", 120)
    with pytest.raises(RateLimitError):
        await rates.count("alice", 120)


async def test_refused_requests_do_not_count() -> None:
    rates = LocalRates(Clock())
    for _ in range(60):
        await rates.count("alice", 60)

    for _ in range(1000):
        with pytest.raises(RateLimitError) as refused:
            await rates.count("alice", 60)

    assert refused.value.retry_after == pytest.approx(1.0)


async def test_the_servers_of_a_database_count_together(postgres: DatabaseLocation) -> None:
    one, other = rates_at(postgres), rates_at(postgres)
    for rates in (one, other):
        await rates.count("alice", 2)
        await rates.count("carol", None)

    for rates in (one, other):
        with pytest.raises(RateLimitError, match="limited to 2 requests a minute") as refused:
            await rates.count("alice", 2)
        assert 25 < refused.value.retry_after <= 30
    await other.count("bob", 1)


async def test_many_requests_at_once_are_counted_once_each(postgres: DatabaseLocation) -> None:
    servers = [SharedRates(postgres) for _ in range(3)]

    outcomes = await asyncio.gather(
        *(servers[number % 3].count("alice", 20) for number in range(40)), return_exceptions=True
    )

    assert sum(outcome is None for outcome in outcomes) == 20
    assert sum(isinstance(outcome, RateLimitError) for outcome in outcomes) == 20


async def test_an_allowance_comes_back_with_time(postgres: DatabaseLocation) -> None:
    rates = SharedRates(postgres)
    # As many as the database takes within a second, and more than it gives back.
    outcomes = await asyncio.gather(
        *(rates.count("alice", 120) for _ in range(200)), return_exceptions=True
    )
    assert isinstance(outcomes[-1], RateLimitError)
    assert 0 < outcomes[-1].retry_after <= 0.5

    await asyncio.sleep(outcomes[-1].retry_after + 0.1)

    await rates.count("alice", 120)


async def test_without_its_database_each_server_counts_alone(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    clock = Clock()
    away = DatabaseLocation("postgresql://me:s3cret@127.0.0.1:1/corpora", tmp_path)
    rates = SharedRates(away, clock)

    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            await rates.count("alice", 2)
        with pytest.raises(RateLimitError):
            await rates.count("alice", 2)

        assert caplog.text.count("counted by each server alone") == 1
        assert "s3cret" not in caplog.text
        # Later the database is asked again.
        clock.now += request_rates._AWAY_SECONDS
        await rates.count("bob", 2)
        assert caplog.text.count("counted by each server alone") == 2


async def test_no_request_waits_for_a_slow_database(
    postgres: DatabaseLocation, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(request_rates, "_WAIT_SECONDS", 0.0)
    rates = SharedRates(postgres, Clock())

    with caplog.at_level(logging.WARNING):
        await rates.count("alice", 1)

    assert "the corpora's database is slow" in caplog.text
    with pytest.raises(RateLimitError):
        await rates.count("alice", 1)
