"""The numbers of the proof, on made-up measurements, and their report."""

from __future__ import annotations

import json
from typing import Any

import pytest

from benchmarks.corpus_adapters.arms import COMBINED, FRESH, INSTANT
from benchmarks.proof_of_gain.arms import (
    AUTO,
    INSTANT_SHOWN,
    NEAREST_SHOWN,
    SHOWN_ALONE,
    TOGETHER,
)
from benchmarks.proof_of_gain.facts import ORACLE
from benchmarks.proof_of_gain.first_token import FirstToken
from benchmarks.proof_of_gain.result import result_of
from benchmarks.proof_of_gain.summary import (
    Row,
    auto_shares,
    sift_minus_nn_by_copies,
    within_seconds,
)
from benchmarks.report.proof import proof
from tests.benchmarks.proof_of_gain.samples import CHOICE, NAMES, fact, facts_part, parts, row
from tests.benchmarks.sketches import sketches

_PERCENTS = {
    SHOWN_ALONE.name: 92.0,
    FRESH.name: 95.0,
    "NN 20": 96.0,
    INSTANT.name: 90.0,
    COMBINED.name: 87.0,
    TOGETHER.name: 80.0,
    AUTO: 82.0,
}


def test_arms_are_listed_by_strategy() -> None:
    _, numbers = result_of(parts([row(number, _PERCENTS) for number in range(4)]))

    percents = numbers["percent_of_base"]
    assert percents["none"] == {
        "base": pytest.approx((100,) * 3),
        "corpus": pytest.approx((90,) * 3),
        "corpus if better": pytest.approx((100,) * 3),
    }
    assert percents["sift"]["fresh + 20"] == pytest.approx((95,) * 3)
    assert percents["nn"]["fresh + 20"] == pytest.approx((96,) * 3)
    assert percents["sift"]["base, shown"] == pytest.approx((92,) * 3)
    assert percents["sift"]["auto"] == pytest.approx((82,) * 3)


def test_all_together_are_compared_with_the_best_single_way() -> None:
    _, numbers = result_of(parts([row(number, _PERCENTS) for number in range(4)]))

    assert numbers["together_ahead"]["best_single"] == INSTANT.name
    assert numbers["together_ahead"]["points"] == pytest.approx((10,) * 3)


def test_auto_is_compared_with_the_best_arm_and_with_hindsight() -> None:
    seconds = {TOGETHER.name: 9.0, AUTO: 2.25, INSTANT.name: 0.0}
    rows = [
        Row(**row(0, {**_PERCENTS, INSTANT.name: 70.0, AUTO: 85.0}, seconds=seconds)),
        Row(**row(1, {**_PERCENTS, AUTO: 85.0}, seconds=seconds)),
    ]

    shares = auto_shares(rows, NAMES[:-1], FirstToken(0.25, 0.001, 0.65))

    # 70 and 90: a mean of 80, as TOGETHER has; both arms are equally good, and the first counts.
    assert shares["gain"] == pytest.approx(15)
    assert shares["gain_share"] == pytest.approx(0.75)
    # In hindsight 30 and 20.
    assert shares["gain_share_of_hindsight"] == pytest.approx(0.6)


def test_seconds_to_the_first_token_have_what_the_engine_adds() -> None:
    seconds = {TOGETHER.name: 9.0, AUTO: 2.0}
    rows = [Row(**row(number, _PERCENTS, seconds=seconds)) for number in range(2)]

    shares = auto_shares(rows, NAMES[:-1], FirstToken(0.25, 0.001, 0.65))

    assert shares["best_arm"] == TOGETHER.name
    assert shares["seconds_share"] == pytest.approx((2 + 1.0) / (9 + 1.0))
    resident = {"seconds": 0.1, "tokens": 100, "is_new": False}
    assert FirstToken(0.25, 0.001, 0.65).seconds(resident) == pytest.approx(0.45)


def test_the_best_arm_within_some_seconds_is_named_for_each_strategy() -> None:
    seconds = {TOGETHER.name: 9.0, FRESH.name: 9.0, "NN 20": 3.0, INSTANT.name: 0.0}
    rows = [Row(**row(number, _PERCENTS, seconds=seconds)) for number in range(2)]

    found = within_seconds(rows, CHOICE, FirstToken(0.25, 0.001, 0.65))

    assert {limit: each["sift"]["arm"] for limit, each in found.items()} == {
        "1": INSTANT.name,
        "5": COMBINED.name,
        "10": TOGETHER.name,
        "20": TOGETHER.name,
    }
    assert found["20"]["nn"]["arm"] == INSTANT.name
    assert found["10"]["sift"]["percent_of_base"] == pytest.approx((80,) * 3)
    assert within_seconds(rows, CHOICE, None) == {}


def test_no_share_is_made_up_where_nothing_gains_or_seconds_are_unknown() -> None:
    shares = auto_shares([Row(**row(0, {}))], NAMES[:-1], None)

    assert shares["gain_share"] is None
    assert shares["seconds_share"] is None


def test_sift_is_compared_by_corpus_kernel_and_near_copies() -> None:
    compared = [
        *(
            row(number, {"NN 20": 90.0}, corpus="deduplicated", kernel="base-model", copies=1.0)
            for number in range(2)
        ),
        *(row(number, {"NN 20": 97.0}, copies=0.5) for number in range(5)),
    ]
    main = [row(number, _PERCENTS) for number in range(4)]

    result, numbers = result_of(parts(main, compared))
    alone = result_of(parts(main))[1]["sift_minus_nn"]

    assert alone["as it is"]["all-MiniLM-L6-v2"]["fresh + 20"] == pytest.approx((-1,) * 3)
    differences = numbers["sift_minus_nn"]
    assert differences["as it is"]["all-MiniLM-L6-v2"]["fresh + 20"] == pytest.approx((3,) * 3)
    assert differences["deduplicated"]["base-model"]["fresh + 20"] == pytest.approx((10,) * 3)
    # Those of one kernel.
    by_copies = result["sift_minus_nn_by_copies"]
    assert {share: found["passages"] for share, found in by_copies.items()} == {"25 to 100 %": 5}
    lines = _written(result)
    few = "| deduplicated | base-model | 2 | fresh + 20 | 10.0 (too few for an interval) |"
    assert few in lines
    assert "| as it is | all-MiniLM-L6-v2 | 5 | fresh + 20 | 3.0 (3.0 to 3.0) |" in lines
    assert any(
        "20 steps from scratch: 3.0 (3.0 to 3.0) on corpora as they are;" in line for line in lines
    )
    # On the corpora of all arms.
    assert "| as it is | fresh + 20 | -1.0 (-1.0 to -1.0) |" in lines


def test_passages_are_grouped_by_their_near_copies() -> None:
    rows = [Row(**row(number, {}, copies=copies)) for number, copies in enumerate((0.1, 0.2, 1.0))]

    by_copies = sift_minus_nn_by_copies(rows, CHOICE)

    assert {share: found["passages"] for share, found in by_copies.items()} == {
        "5 to 25 %": 2,
        "25 to 100 %": 1,
    }


def test_next_lines_are_counted_where_they_were_asked_for() -> None:
    main = [row(0, {}, exact={AUTO: True}), row(1, {}, exact={}), row(2, {})]

    _, numbers = result_of(parts(main))

    assert numbers["next_line_exact_match"][AUTO][0] == pytest.approx(50)
    assert numbers["next_line_exact_match"]["base"][0] == 0
    assert numbers["next_line_similarity"]["base"][0] == pytest.approx(50)


def test_right_answers_are_counted_and_compared_with_the_chosen_text_shown() -> None:
    shown = {SHOWN_ALONE.name, ORACLE}
    rows = [fact(0, shown), fact(1, {ORACLE}, is_shown=False), fact(2, shown), fact(3, shown)]

    result, numbers = result_of({"facts": facts_part(rows)})

    right = numbers["facts_right"]
    assert right["base"] == (0, 0, 0)
    assert right[ORACLE] == (100, 100, 100)
    # One document has one of two answers, the other has both.
    assert right[SHOWN_ALONE.name] == pytest.approx((75, 50, 100))
    assert result["facts_minus_shown"][ORACLE] == pytest.approx((25, 0, 50))
    assert result["facts_in_shown"][0] == pytest.approx(75)
    lines = proof({"proof": json.loads(json.dumps(result))}, sketches("proof"))
    assert "| base, its document shown | 100.0 (100.0 to 100.0) | 25.0 (0.0 to 50.0) |" in lines
    assert "| base, shown | 75.0 (50.0 to 100.0) |  |" in lines
    assert any("Per cent of 4 questions" in line and "of the 25" in line for line in lines)
    assert any(
        "trained or not, has 0.0 % right; minus the chosen text in the prompt alone, that is -75.0 "
        in line
        for line in lines
    )


def test_a_part_alone_has_numbers() -> None:
    result, numbers = result_of({"first-token": parts([])["first-token"]})

    assert numbers["percent_of_base"] is None
    assert numbers["facts_right"] is None
    assert result["by_arm"] == {}
    assert proof({"proof": json.loads(json.dumps(result))}, sketches("proof"))


def test_the_report_opens_with_a_table_a_plot_and_five_sentences() -> None:
    main = [row(number, _PERCENTS, exact={AUTO: True}) for number in range(4)]
    compared = [row(number, {}, corpus="deduplicated") for number in range(5)]
    result, _ = result_of(parts(main, compared))

    lines = proof(
        {"proof": {**json.loads(json.dumps(result)), "model": "smollm2"}}, sketches("proof")
    )

    rest = lines.index("### By domain, with steps")
    assert [line[:2] for line in lines[:rest] if line[:1].isdigit()] == [
        f"{number}." for number in range(1, 6)
    ]
    assert any("proof-gains.svg" in line for line in lines[:rest])
    for text in (
        "| corpus if better + 10, shown | 80.0 (80.0 to 80.0) | -2.0 (-2.0 to -2.0) | 0 of 4 | 0.0",
        "of 1.20 MB each, were trained ahead: 1, in 800 (800 to 800) seconds (median, least",
        "1. On 4 passages of 4 documents in 2 domains",
        "2. All together (`corpus if better + 10, shown`) reach 80.0 (80.0 to 80.0) %, better "
        "than that by 10.0 (10.0 to 10.0) points; no domain has the 5",
        "3. `auto` reaches 82.0 (82.0 to 82.0) %, better than that by 8.0 (8.0 to 8.0) points; ",
        "`auto` has 90% of the gain of the best arm",
        "**does not hold**",
        "(below 0: SIFT is better), after 20 steps from scratch: 0.0 (0.0 to 0.0) on deduplicated",
    ):
        assert any(text in line for line in lines[:rest]), text
    for text in (
        "| domain 0 | 50 | 1,500 | 1.20 | 3 | 0 | 1,400 | 800 |",
        "| 5 to 25 % | 5 | fresh + 20 | 0.0 (0.0 to 0.0) |",
    ):
        assert any(text in line for line in lines[rest:]), text


def _written(result: dict[str, Any]) -> list[str]:
    read = json.loads(json.dumps({**result, "model": "smollm2"}))
    return proof({"proof": read}, sketches("proof"))


def test_the_part_with_most_passages_is_the_first_page() -> None:
    main = [row(number, _PERCENTS) for number in range(2)]
    together = {INSTANT_SHOWN.name: 90.0, NEAREST_SHOWN.name: 97.0, AUTO: 101.0}
    quick = [row(number, together, trainings="none") for number in range(4)]
    without = {**parts(quick)["arms"], "size": {"trainings": "none"}}

    both, numbers = result_of({**parts(main), "arms without steps": without})
    alone, numbers_alone = result_of({"arms without steps": without})

    for found in (numbers, numbers_alone):
        assert found["without_steps"]["percent_of_base"]["sift"][AUTO] == pytest.approx((101,) * 3)
    assert numbers["auto"] == result_of(parts(main))[1]["auto"]
    for lines in _written(both), _written(alone):
        first = lines[: lines.index("### By domain, without a step")]
        for text in (
            "1. On 4 passages of 4 documents in 2 domains",
            "the best way alone is the nearest text in the prompt, with 97.0 (97.0 to 97.0) %",
            "2. The adapter and text in the prompt together (`corpus, shown`) reach 90.0 (90",
            "3. `auto` reaches 101.0 (101.0 to 101.0) %, better than that by -4.0 (-4.0 to -4.0)",
            "| what `auto` does | auto | 101.0 (101.0 to 101.0) |  | 4 of 4 |",
            "| that of the corpus, and text that SIFT chooses in the prompt | corpus, shown | 90.",
            "(below 0: SIFT is better), with the text in the prompt alone: 3.0 (3.0 to 3.0) on ",
        ):
            assert any(text in line for line in first), text
    assert "### With steps" in _written(both)
    assert "### With steps" not in _written(alone)


def test_domains_of_few_documents_are_not_named_in_the_sentences() -> None:
    ahead, behind = {AUTO: 80.0}, {AUTO: 99.0, SHOWN_ALONE.name: 90.0}
    rows = [
        *(row(number, ahead, domain="large") for number in range(5)),
        *(row(number, behind, domain="larger") for number in range(5, 11)),
        *(row(number, behind, domain="small") for number in range(11, 15)),
    ]

    lines = _written(result_of(parts(rows))[0])

    assert any(
        "above 0 in 1 (large) and below 0 in 1 (larger) of the 2 with 5 documents or" in line
        for line in lines
        if line.startswith("3.")
    )


def test_an_arm_that_a_former_run_lacks_is_left_out() -> None:
    rows = [row(number, _PERCENTS) for number in range(3)]
    del rows[1]["arms"]["corpus, NN shown"]

    _, numbers = result_of(parts(rows))

    assert "corpus, shown" in numbers["percent_of_base"]["sift"]
    assert "corpus, shown" not in numbers["percent_of_base"]["nn"]
    assert "base, shown" in numbers["sift_minus_nn"]["as it is"]["all-MiniLM-L6-v2"]
    assert "corpus, shown" not in numbers["sift_minus_nn"]["as it is"]["all-MiniLM-L6-v2"]
