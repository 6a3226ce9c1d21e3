"""Reader: on whose behalf a library is used, and which corpora and uploads exist for them.

It knows of a corpus only what that remembers of itself, and nothing of how its reader proved who
they are.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Principal:
    """Someone who uses corpora. They see what they own and what was named to them, and change what
    they own.

    Attributes:
        owner: whose is what they make; None makes it nobody's.
        corpora: what else they see: ids, and names of corpora that are nobody's; None is
            everything, to change, too.
    """

    owner: str | None = None
    corpora: frozenset[str] | None = None

    def owns(self, owner: str | None) -> bool:
        """Whether a corpus or an upload of that owner is theirs to change."""
        return self.corpora is None or (owner is not None and owner == self.owner)

    def sees(self, folder: str, meta: Mapping[str, str]) -> bool:
        """Whether a corpus exists for them, by the name of its folder and what it remembers of
        itself.
        """
        if self.corpora is None or self.owns(meta.get("owner")):
            return True
        # An owner chooses the name: a name that was meant for another corpus must not show theirs
        # in its place.
        names = {meta.get("id")} if "owner" in meta else {meta.get("id"), meta.get("name"), folder}
        return not self.corpora.isdisjoint(names)


OPERATOR = Principal()
