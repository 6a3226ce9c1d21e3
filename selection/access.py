"""Principal: on whose behalf corpora are used, which of them are visible and which may be changed.

Of a corpus it uses only the metadata, and it is independent of how a principal was authenticated.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Principal:
    """A user of corpora. They see what they own and what is shared with them, and may change what
    they own.

    Attributes:
        owner: the owner recorded in corpora and uploads that they create; None records no owner.
        corpora: what else they see: ids of corpora, and names of corpora without an owner. None
            gives access to everything, including the right to change it.
    """

    owner: str | None = None
    corpora: frozenset[str] | None = None

    def owns(self, owner: str | None) -> bool:
        """Whether they may change a corpus or an upload of that owner."""
        return self.corpora is None or (owner is not None and owner == self.owner)

    def sees(self, folder: str, meta: Mapping[str, str]) -> bool:
        """Whether they see a corpus.

        Args:
            folder: the name of its folder.
            meta: its metadata (`Corpus.meta`).
        """
        if self.corpora is None or self.owns(meta.get("owner")):
            return True
        # Owners choose display names freely, so an owned corpus is matched by its id only: its name
        # must not let it pass for another corpus.
        names = {meta.get("id")} if "owner" in meta else {meta.get("id"), meta.get("name"), folder}
        return not self.corpora.isdisjoint(names)


OPERATOR = Principal()
