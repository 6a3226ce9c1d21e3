"""Readers: what they see and own of corpora, by owner, id and name."""

from __future__ import annotations

import pickle

from hypothesis import given
from hypothesis import strategies as st

from selection.access import OPERATOR, Principal

_names = st.sampled_from(["alice", "bob", "nx", "vs_1", "vs_2"])
_readers = st.builds(Principal, st.none() | _names, st.none() | st.frozensets(_names))
_metas = st.fixed_dictionaries({"id": _names}, optional={"owner": _names, "name": _names})


@given(_readers, _names, _metas)
def test_what_one_owns_one_sees(reader: Principal, folder: str, meta: dict[str, str]) -> None:
    assert reader.sees(folder, meta) or not reader.owns(meta.get("owner"))
    assert OPERATOR.sees(folder, meta)
    assert OPERATOR.owns(meta.get("owner"))


@given(_names, st.frozensets(_names), _names, _metas, _names)
def test_no_name_that_an_owner_gives_shows_it_to_others(
    owner: str, corpora: frozenset[str], folder: str, meta: dict[str, str], name: str
) -> None:
    reader = Principal(owner, corpora)
    named, renamed = {"owner": "carol", **meta}, {"owner": "carol", **meta, "name": name}

    assert reader.sees(folder, named) == reader.sees(folder, renamed)


def test_what_is_nobodys_is_seen_by_its_folder_its_id_and_its_name() -> None:
    meta = {"id": "vs_1", "name": "My handbook"}

    for name in ("handbook", "vs_1", "My handbook"):
        reader = Principal("alice", frozenset({name}))
        assert reader.sees("handbook", meta)
        assert not reader.owns(meta.get("owner"))
    assert not Principal("alice", frozenset({"other"})).sees("handbook", meta)


def test_who_has_no_name_owns_nothing_of_nobodys() -> None:
    assert not Principal(None, frozenset()).owns(None)
    assert not Principal(None, frozenset()).sees("handbook", {"id": "vs_1"})


def test_it_survives_pickling() -> None:
    reader = Principal("alice", frozenset({"nx"}))

    assert pickle.loads(pickle.dumps(reader)) == reader
