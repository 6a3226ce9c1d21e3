"""Text from data is printed as it is: brackets stay, and nothing in it can control a terminal."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

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


def test_documents_are_listed_and_removed_by_their_exact_names(
    corpora: Path, words: Embedder, tmp_path: Path
) -> None:
    corpus = Corpus.create(corpora, "site", words, "tokenizer")
    for name in _NAMES[:-1]:  # SQLite cannot store a lone surrogate
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
        r"mayfly: cannot load the model '/no/[/such]/\x1b[2Jmodel': no such folder"
    )


@given(st.text(max_size=40))
def test_any_text_is_printed_completely_and_without_control_characters(text: str) -> None:
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


def test_lines_on_a_pipe_are_not_wrapped(tmp_path: Path, corpora: Path, words: Embedder) -> None:
    corpus = Corpus.create(corpora, "deep", words, "tokenizer")
    name = "/".join(["folder"] * 60)
    corpus.add(name, name, [Chunk(0, "text", (1, 2))], words.embed(["text"]))
    corpus.close()

    shown = run(tmp_path, "corpus", "show", "deep", MAYFLY_HOME=str(corpora.parent), COLUMNS="80")

    assert name in shown.out


@pytest.mark.parametrize("text", _NAMES)
def test_plain_line_is_printable(text: str) -> None:
    assert plain_line(text).isprintable()
