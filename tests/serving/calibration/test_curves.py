"""Curves: how arms are compared, and the gain that is read off them."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from adapters.early_stopping import FIRST_INTERVAL, PATIENCE
from serving.budget import AUTO
from serving.calibration.curves import (
    GAINS,
    Arm,
    Curve,
    arm,
    best_arm,
    choose_gain,
    stopped_percent,
    stopping,
)


class TestArms:
    """What is shown and the number of steps, by exact answers and then by loss."""

    def test_more_exact_answers_are_better_and_then_a_lower_loss(self) -> None:
        exact, close = Arm(2, 10, 70.0, 0.5), Arm(4, 10, 40.0, 0.25)
        closer = Arm(8, 10, 30.0, 0.25)

        assert best_arm([close, exact, closer]) == exact
        assert closer.is_better_than(close)

    def test_of_equal_ones_the_first_and_never_one_without_steps(self) -> None:
        none, few, many = (Arm(0, steps, 90.0 - bool(steps), None) for steps in (0, 2, 50))
        shown = Arm(8, 0, 20.0, None)

        assert best_arm([none, few, many, shown]) == few

    def test_an_arm_is_read_off_the_curves(self) -> None:
        falling = Curve(tuple(100.0 - n for n in range(51)), (100.0,) * 51)
        flat = Curve((100.0,) * 51, (100.0,) * 51, (False,) * 9 + (True,) * 42)

        assert arm({0: [], 4: [falling, flat]}, 4, 10) == Arm(4, 10, 95.0, 1.0)
        assert arm({0: [], 4: [falling, flat]}, 4, 8) == Arm(4, 8, 96.0, 0.0)


class TestStopping:
    """The gain that is chosen from curves."""

    @given(
        st.lists(st.lists(st.floats(0.1, 1.0), min_size=51, max_size=51), min_size=1, max_size=5)
    )
    def test_a_larger_gain_never_takes_more_steps(self, prompts: list[list[float]]) -> None:
        curves = [
            Curve(tuple(100.0 - n for n in range(51)), tuple(100 * each for each in prompt))
            for prompt in prompts
        ]

        steps = [stopping(curves, gain)[0] for gain in GAINS]

        assert steps == sorted(steps, reverse=True)

    def test_the_chosen_gain_retains_its_share_in_as_few_steps_as_possible(self) -> None:
        quick = Curve((100.0, *(80.0,) * 50), (100.0, *(90.0,) * 50))

        gain = choose_gain([quick])

        steps, share = stopping([quick], gain)
        assert share == 1.0
        # No stop is possible earlier.
        assert steps == FIRST_INTERVAL * PATIENCE

    def test_what_is_shown_does_not_count_as_a_gain_of_the_steps(self) -> None:
        shown = Curve((60.0, *(50.0,) * 50), (100.0, *(90.0,) * 50))

        assert stopping([shown], 0.25)[1] == 1.0

    def test_where_a_gain_stops_is_told_as_a_loss_also_if_all_steps_gain_little(self) -> None:
        worse_later = Curve((100.0, *(90.0,) * 49, 99.0), (100.0, *(90.0,) * 50))

        assert stopped_percent([worse_later], gain=0.25) == 90.0

    def test_without_any_improvement_the_built_in_gain_stays(self) -> None:
        worse = Curve(tuple(100.0 + n for n in range(51)), (100.0,) * 51)

        assert choose_gain([worse]) == AUTO.gain
