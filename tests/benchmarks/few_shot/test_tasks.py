"""Tasks in invented formats: the same for a seed, and learnable from their demonstrations."""

from __future__ import annotations

import json

import pytest

from benchmarks.few_shot.choosing_formats import CHOOSING
from benchmarks.few_shot.reported_formats import REPORTED
from benchmarks.few_shot.task import DEMONSTRATIONS, QUERIES, Task, make_tasks

_SEEDS = range(5)


def _tasks(seed: int) -> list[Task]:
    return make_tasks({**REPORTED, **CHOOSING}, seed)


def test_the_tasks_for_choosing_are_others_than_those_reported() -> None:
    assert len(REPORTED) >= 8
    assert len(CHOOSING) >= 4
    assert not REPORTED.keys() & CHOOSING.keys()


@pytest.mark.parametrize("seed", _SEEDS)
def test_no_question_occurs_twice(seed: int) -> None:
    for task in _tasks(seed):
        questions = {pair.question for pair in (*task.demonstrations, *task.queries)}

        assert (len(task.demonstrations), len(task.queries)) == (DEMONSTRATIONS, QUERIES)
        assert len(questions) == DEMONSTRATIONS + QUERIES


def test_a_seed_makes_the_same_tasks_and_another_seed_other_formats() -> None:
    assert _tasks(3) == _tasks(3)
    for first, second in zip(_tasks(3), _tasks(4), strict=True):
        known = {pair.question: pair.answer for pair in (*first.demonstrations, *first.queries)}
        both = [p for p in (*second.demonstrations, *second.queries) if p.question in known]

        assert first.demonstrations != second.demonstrations
        assert all(known[pair.question] != pair.answer for pair in both)


@pytest.mark.parametrize("seed", _SEEDS)
def test_each_invented_word_of_an_answer_is_in_a_demonstration(seed: int) -> None:
    # Numbers and the values of a question can be any; labels and commands must have been shown.
    for task in _tasks(seed):
        shown = " ".join(pair.answer for pair in task.demonstrations)
        for query in task.queries:
            for word in "".join(c if c.isalpha() else " " for c in query.answer).split():
                assert word in shown or word.lower() in query.question.lower(), (task.name, word)


@pytest.mark.parametrize("seed", _SEEDS)
def test_a_log_line_becomes_json_with_four_fields_in_one_order(seed: int) -> None:
    (task,) = (task for task in _tasks(seed) if task.name == "log line")
    keys = {tuple(json.loads(pair.answer)) for pair in (*task.demonstrations, *task.queries)}

    assert len(keys) == 1
    assert len(keys.pop()) == 4


def test_answers_are_short_enough_for_a_request() -> None:
    for task in _tasks(0):
        assert max(len(pair.answer) for pair in task.queries) < 100
