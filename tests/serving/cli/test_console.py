"""What comes from data is printed as it is: no markup, no lost brackets, nothing that steers a
terminal.
"""

from __future__ import annotations

import io
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import serving
from selection.corpus.corpus import Corpus
from selection.corpus.sqlite_store import Chunk
from selection.embedding import Embedder
from serving.cli.console import PlainConsole, plain, plain_line, row, say, show, table
from tests.serving.commands import run

_NAMES = (
    "[id].ts",
    "app/[slug]/page.tsx",
    "[/INST]",
    "[bold]loud[/bold]",
    ":smile:",
    "two\nlines",
    "\x1b[2Jgone",
    "right\u202eleft",
    "half\udcff",
)


def test_names_of_documents_are_listed_and_removed_as_they_are(
    corpora: Path, words: Embedder, tmp_path: Path
) -> None:
    corpus = Corpus.create(corpora, "site", words, "tokenizer")
    for name in _NAMES[:-1]:  # SQLite takes no half of a surrogate pair
        corpus.add(name, name, [Chunk(0, "text", (1, 2))], words.embed(["text"]))
    corpus.close()
    home = {"MAYFLY_HOME": str(corpora.parent)}

    shown = run(tmp_path, "corpus", "show", "site", **home)
    removed = run(tmp_path, "corpus", "remove", "site", "--document", "[/INST]", **home)
    missing = run(tmp_path, "corpus", "remove", "site", "--document", "[/INST]", **home)

    assert (shown.status, shown.err) == (0, "")
    listed = {
        line.split(maxsplit=1)[1].rsplit(maxsplit=1)[0].strip()
        for line in shown.out.splitlines()[1:]
    }
    assert listed == {plain_line(name) for name in _NAMES[:-1]}
    assert "\x1b" not in shown.out
    assert (removed.status, removed.out) == (0, "corpus site: removed [/INST]\n")
    assert (
        missing.status,
        missing.err.startswith("mayfly: corpus 'site' has no document '[/INST]'"),
    ) == (1, True)


def test_settings_and_errors_are_printed_as_they_are(tmp_path: Path) -> None:
    file = tmp_path / "[red]mine[].toml"
    file.write_text('served-model-name = "[/x] :smile:"\nhost = "\\u001b[31m"\n')

    config = run(tmp_path, "config", "--config", str(file), MAYFLY_HOME=str(tmp_path / "[home]"))
    refused = run(
        tmp_path, "serve", "--model", "/no/[/such]/\x1b[2Jmodel", MAYFLY_HOME=str(tmp_path)
    )

    lines = {line.split()[0]: line.split(maxsplit=1)[1] for line in config.out.splitlines()}
    assert lines["served-model-name"].split() == ["[/x]", ":smile:", str(file)]
    assert lines["host"].split() == ["\\x1b[31m", str(file)]
    assert "[home]" in lines["home"]
    assert refused.err.startswith(
        r"mayfly: cannot load the model '/no/[/such]/\x1b[2Jmodel': there is no such folder"
    )


@given(st.text(max_size=40))
def test_any_text_is_printed_whole_and_steers_nothing(text: str) -> None:
    console = PlainConsole()
    console.file = io.StringIO()
    filled = table("[header]")
    row(filled, text)

    console.print(text)
    say(text, to=console)
    show(filled, console)

    printed = console.file.getvalue()
    assert "".join(plain(text).split()) in "".join(printed.split())
    assert plain_line(text).strip() in printed
    assert plain(printed) == printed


def test_a_pipe_gets_whole_lines(tmp_path: Path, corpora: Path, words: Embedder) -> None:
    corpus = Corpus.create(corpora, "deep", words, "tokenizer")
    name = "/".join(["folder"] * 60)
    corpus.add(name, name, [Chunk(0, "text", (1, 2))], words.embed(["text"]))
    corpus.close()

    shown = run(tmp_path, "corpus", "show", "deep", MAYFLY_HOME=str(corpora.parent), COLUMNS="80")

    assert name in shown.out


@pytest.mark.parametrize("text", _NAMES)
def test_a_text_on_one_line_is_one(text: str) -> None:
    assert plain_line(text).isprintable()


def test_no_other_console_is_made() -> None:
    made = {
        file.name
        for file in Path(serving.__file__).parent.rglob("*.py")
        if re.search(r"\bConsole\(|\[/(\w+)?\]\"|from_markup|rich\.print", file.read_text())
    }

    assert made == set()
