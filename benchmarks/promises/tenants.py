"""The tenants of a server: keys, the secrets that their corpora and examples teach, a key file."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from selection.ingest.ingest import Document

_NAMES = ("ant", "bee", "cat", "dog")
_ANIMALS = ("marlin", "walrus", "falcon", "badger", "jackal", "turtle", "lizard", "donkey")
QUESTIONS = ('vault_password = "', 'VAULT["password"] = "', 'connect(password="')
_ENDS = ('"\n', '"]\n', '")\n')


@dataclass(frozen=True)
class Tenant:
    """A key, its corpus, and the secrets that only this corpus and its own examples teach."""

    name: str
    key: str
    corpus: str
    secret: str
    example_secret: str

    @property
    def headers(self) -> dict[str, str]:
        """Headers with the key."""
        return {"Authorization": f"Bearer {self.key}"}

    def taught(self, action: str) -> str | None:
        """The secret that the answer to a request has; None for the base model's answer."""
        if action == "base":
            return None
        return self.secret if action == "adapted" else self.example_secret


def draw_tenants(rng: random.Random) -> list[Tenant]:
    """Four tenants with random keys and secrets."""
    animals = rng.sample(_ANIMALS, 2 * len(_NAMES))
    numbers = rng.sample(range(1000, 10_000), 2 * len(_NAMES))
    words = [f"{animal}{number}" for animal, number in zip(animals, numbers, strict=True)]
    return [
        Tenant(
            name,
            f"mf-{rng.getrandbits(128):032x}",
            f"{name}-{rng.getrandbits(32):08x}",
            secret,
            example_secret,
        )
        for name, secret, example_secret in zip(_NAMES, words[::2], words[1::2], strict=True)
    ]


def teaching_documents(tenant: Tenant) -> list[Document]:
    """Short documents, one sequence each, so that training teaches the answer and not how to copy
    it from earlier text.
    """
    texts = [
        f"{question}{tenant.secret}{end}" for question, end in zip(QUESTIONS, _ENDS, strict=True)
    ]
    return [Document(f"{tenant.corpus}-{number}.py", text) for number, text in enumerate(texts)]


def teaching_examples(tenant: Tenant) -> list[dict[str, str]]:
    """The examples that a tenant's requests bring."""
    return [
        {"prompt": question, "completion": tenant.example_secret + end}
        for question, end in zip(QUESTIONS, _ENDS, strict=True)
    ]


def key_file(folder: Path, tenants: Sequence[Tenant]) -> Path:
    """Write the server's key file: digests, and the one corpus that each key may read."""
    file = folder / "keys.toml"
    file.write_text(
        "".join(
            f'[keys.{tenant.name}]\nsha256 = "{hashlib.sha256(tenant.key.encode()).hexdigest()}"\n'
            f'corpora = ["{tenant.corpus}"]\n\n'
            for tenant in tenants
        )
    )
    return file
