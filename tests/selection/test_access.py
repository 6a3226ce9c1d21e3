"""Principals: which corpora they see and own, by owner, id and name."""

from __future__ import annotations

import pickle

from hypothesis import given
from hypothesis import strategies as st

from selection.access import OPERATOR, Principal

_names = st.sampled_from(["alice", "bob", "nx", "vs_1", "vs_2"])
_principals = st.builds(Principal, st.none() | _names, st.none() | st.frozensets(_names))
_metas = st.fixed_dictionaries({"id": _names}, optional={"owner": _names, "name": _names})


@given(_principals, _names, _metas)
def test_owners_see_what_they_own(principal: Principal, folder: str, meta: dict[str, str]) -> None:
    assert principal.sees(folder, meta) or not principal.owns(meta.get("owner"))
    assert OPERATOR.sees(folder, meta)
    assert OPERATOR.owns(meta.get("owner"))


@given(_names, st.frozensets(_names), _names, _metas, _names)
def test_a_display_name_never_makes_an_owned_corpus_visible(
    owner: str, corpora: frozenset[str], folder: str, meta: dict[str, str], name: str
) -> None:
    principal = Principal(owner, corpora)
    named, renamed = {"owner": "carol", **meta}, {"owner": "carol", **meta, "name": name}

    assert principal.sees(folder, named) == principal.sees(folder, renamed)


def test_a_corpus_without_owner_is_visible_by_folder_id_and_name() -> None:
    meta = {"id": "vs_1", "name": "My handbook"}

    for name in ("handbook", "vs_1", "My handbook"):
        principal = Principal("alice", frozenset({name}))
        assert principal.sees("handbook", meta)
        assert not principal.owns(meta.get("owner"))
    assert not Principal("alice", frozenset({"other"})).sees("handbook", meta)


def test_a_principal_without_a_name_does_not_own_what_has_no_owner() -> None:
    assert not Principal(None, frozenset()).owns(None)
    assert not Principal(None, frozenset()).sees("handbook", {"id": "vs_1"})


def test_a_principal_can_be_pickled() -> None:
    principal = Principal("alice", frozenset({"nx"}))

    assert pickle.loads(pickle.dumps(principal)) == principal
