"""Isolation: what each corpus teaches, and how answers may differ."""

from __future__ import annotations

import random

from benchmarks.promises.isolation import Answer, difference
from benchmarks.promises.tenants import draw_tenants, teaching_documents, teaching_examples


def test_every_tenant_has_a_secret_that_no_other_corpus_teaches() -> None:
    tenants = draw_tenants(random.Random(0))
    for tenant in tenants:
        taught = "".join(document.text for document in teaching_documents(tenant))
        assert [other.secret in taught for other in tenants] == [
            other is tenant for other in tenants
        ]
        examples = str(teaching_examples(tenant))
        assert [other.example_secret in examples for other in tenants] == [
            other is tenant for other in tenants
        ]
        assert tenant.secret not in examples
        assert tenant.example_secret not in taught


def test_tokens_may_differ_only_where_two_were_equally_likely() -> None:
    expected = Answer("abc", ("a", "b", "c"), (5.0, 0.001, 5.0))

    assert difference(expected, expected) is None
    assert difference(expected, Answer("axy", ("a", "x", "y"), (5.0, 5.0, 5.0))) == "tie"
    assert difference(expected, Answer("xbc", ("x", "b", "c"), (5.0, 5.0, 5.0))) == "tokens"
    assert difference(expected, Answer("ab", ("a", "b"), (5.0, 5.0))) == "tokens"
