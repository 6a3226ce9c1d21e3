"""Key files of the tests of API keys."""

from __future__ import annotations

from pathlib import Path

from serving.api_keys.key import digest


def key_file(folder: Path, **secrets: str) -> Path:
    """A key file of keys with these secrets."""
    file = folder / "keys.toml"
    file.write_text(
        "[keys]\n"
        + "".join(
            f'[keys.{name}]\nsha256 = "{digest(secret)}"\n' for name, secret in secrets.items()
        )
    )
    return file
