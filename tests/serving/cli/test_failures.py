"""What a user can mend is one line and status 1; a bug keeps its traceback; a closed pipe is no
news.
"""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from adapters.errors import BaseModelError
from selection.corpus.corpus import Corpus
from selection.corpus.sqlite_store import Chunk
from selection.embedding import Embedder
from selection.errors import CorpusError, SelectionOptionError
from serving.cli.failures import Failures, mendable
from serving.errors import SettingsError, StartError
from tests.serving.commands import run


def failing(
    problem: BaseException, capsys: pytest.CaptureFixture[str], *, debug: bool = False
) -> tuple[int, str]:
    failures = Failures()

    def command() -> None:
        failures.debug = debug
        raise problem

    return failures.status_of(command), capsys.readouterr().err


@pytest.mark.parametrize(
    "kind", [CorpusError, SettingsError, StartError, BaseModelError, SelectionOptionError]
)
def test_ours_are_one_line(kind: type[Exception], capsys: pytest.CaptureFixture[str]) -> None:
    problem = kind("it is [/wrong]")
    problem.add_note("its folder is /x")

    assert failing(problem, capsys) == (1, "mayfly: it is [/wrong]; its folder is /x\n")


@pytest.mark.parametrize(
    "kind", [ValueError, KeyError, AssertionError, RuntimeError, TypeError, UnicodeDecodeError]
)
def test_a_bug_keeps_its_traceback(
    kind: type[Exception], capsys: pytest.CaptureFixture[str]
) -> None:
    problem = kind("utf-8", b"x", 0, 1, "odd") if kind is UnicodeDecodeError else kind("odd")

    status, said = failing(problem, capsys)

    assert status == 1
    assert said.startswith("Traceback (most recent call last):")
    assert 'test_failures.py", line' in said
    assert said.endswith(
        "\nmayfly: this is a bug in Mayfly: please report it, with the traceback above\n"
    )


def test_debug_shows_every_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    status, said = failing(SettingsError("wrong"), capsys, debug=True)

    assert status == 1
    assert said.startswith("Traceback")
    assert said.endswith("\nmayfly: wrong\n")


def test_debug_is_an_option_of_the_command(tmp_path: Path) -> None:
    ended = run(tmp_path, "--debug", "corpus", "show", "nowhere", MAYFLY_HOME=str(tmp_path))

    assert "Traceback" in ended.err
    assert ended.err.splitlines()[-1].startswith("mayfly: there is no corpus 'nowhere'")


@pytest.mark.parametrize(
    ("code", "said"),
    [
        (
            errno.EROFS,
            "/data/x: Read-only file system; name a place that can be written to, for corpora with --home",
        ),
        (errno.ENOSPC, "/data/x: No space left on device; make room"),
        (errno.EACCES, "/data/x: Permission denied; see to it that you may read and write there"),
        (
            errno.ELOOP,
            "/data/x: Too many levels of symbolic links; its symbolic links lead back to themselves",
        ),
        (errno.ENOTDIR, "/data/x: Not a directory; a part of the path is a file"),
        (errno.ENAMETOOLONG, "/data/x: File name too long; use a shorter name"),
    ],
)
def test_what_the_system_refuses_comes_with_what_to_do(code: int, said: str) -> None:
    words = mendable(OSError(code, os.strerror(code), "/data/x"))

    assert words is not None
    assert words.startswith(said)


def test_an_error_of_the_system_without_a_remedy_is_a_bug() -> None:
    assert mendable(OSError(errno.EBADF, "Bad file descriptor")) is None
    assert mendable(OSError("odd")) is None


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            ("corpus", "add", "x", "{tmp}/loop"),
            "/loop cannot be read: Too many levels of symbolic links",
        ),
        (
            ("corpus", "add", "x", "{tmp}/a-file/inside"),
            "/a-file/inside cannot be read: Not a directory",
        ),
        (("corpus", "add", "x", "{tmp}/" + "y" * 300), "File name too long"),
        (("corpus", "list", "--home", "{tmp}/loop"), "no corpora in"),
        (("corpus", "add", "x", "{tmp}/a-file", "--home", "{tmp}/a-file"), "a-file/corpora"),
        (("serve", "--config", "{tmp}/loop"), "cannot read the settings in"),
        (("serve", "--api-key-file", "{tmp}/loop"), "cannot read the key file"),
        (("serve", "--model", "{tmp}/loop"), "cannot load the model"),
        (("plan", "--measured", "{tmp}/loop"), "cannot read"),
        (("plan", "--save", "{tmp}/a-file/new", "--rate", "1"), "there is no folder"),
        (
            ("adapt", "--prompt", "x", "--corpus", "x", "--out", "{tmp}/a-file/new"),
            "a-file is not a folder",
        ),
    ],
)
def test_odd_paths_are_told_in_a_line(
    tmp_path: Path, arguments: tuple[str, ...], said: str
) -> None:
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    (tmp_path / "a-file").write_text("def f(): pass\n")

    ended = run(
        tmp_path,
        *(each.format(tmp=tmp_path) for each in arguments),
        MAYFLY_HOME=str(tmp_path),
        MAYFLY_PORT="21651",
    )

    assert said in ended.err + ended.out
    assert "Traceback" not in ended.err


def test_a_closed_pipe_ends_a_command_silently(corpora: Path, words: Embedder) -> None:
    corpus = Corpus.create(corpora, "many", words, "tokenizer")
    for number in range(3000):  # more than a pipe holds
        name = f"{number}-{'x' * 100}"
        corpus.add(name, name, [Chunk(0, "text", (1, 2))], words.embed(["text"]))
    corpus.close()
    command = f"{sys.executable} -c 'from serving.cli.main import main; main()' corpus show many --home {corpora.parent}"

    done = subprocess.run(["bash", "-c", f"{command} | head -1"], capture_output=True, text=True)

    assert done.stdout.split() == ["id", "document", "sequences"]
    assert done.stderr == ""


def test_characters_that_the_terminal_has_not_are_escaped(
    corpora: Path, words: Embedder, tmp_path: Path
) -> None:
    corpus = Corpus.create(corpora, "names", words, "tokenizer")
    corpus.add("größe→", "1", [Chunk(0, "text", (1, 2))], words.embed(["text"]))
    corpus.close()

    shown = run(
        tmp_path,
        "corpus",
        "show",
        "names",
        MAYFLY_HOME=str(corpora.parent),
        PYTHONIOENCODING="ascii",
    )

    assert (shown.status, shown.err) == (0, "")
    assert r"gr\xf6\xdfe\u2192" in shown.out
