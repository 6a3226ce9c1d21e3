"""Errors that the user can fix are one line, bugs keep their traceback, closed pipes are silent."""

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
from serving.cli.error_reporting import ErrorReporter, user_message
from serving.errors import SettingsError, StartError
from tests.serving.commands import run


def run_failing(
    problem: BaseException, capsys: pytest.CaptureFixture[str], *, debug: bool = False
) -> tuple[int, str]:
    """The exit status and standard error of a command that raises `problem`."""
    reporter = ErrorReporter()

    def command() -> None:
        reporter.debug = debug
        raise problem

    return reporter.run(command), capsys.readouterr().err


@pytest.mark.parametrize(
    "kind", [CorpusError, SettingsError, StartError, BaseModelError, SelectionOptionError]
)
def test_our_exceptions_are_reported_in_one_line(
    kind: type[Exception], capsys: pytest.CaptureFixture[str]
) -> None:
    problem = kind("it is [/wrong]")
    problem.add_note("its folder is /x")

    assert run_failing(problem, capsys) == (1, "mayfly: it is [/wrong]; its folder is /x\n")


@pytest.mark.parametrize(
    "kind", [ValueError, KeyError, AssertionError, RuntimeError, TypeError, UnicodeDecodeError]
)
def test_a_bug_keeps_its_traceback(
    kind: type[Exception], capsys: pytest.CaptureFixture[str]
) -> None:
    problem = kind("utf-8", b"x", 0, 1, "odd") if kind is UnicodeDecodeError else kind("odd")

    status, reported = run_failing(problem, capsys)

    assert status == 1
    assert reported.startswith("Traceback (most recent call last):")
    assert 'test_error_reporting.py", line' in reported
    assert reported.endswith(
        "\nmayfly: this is a bug in Mayfly: please report it, with the traceback above\n"
    )


def test_debug_shows_the_traceback_of_our_exceptions(capsys: pytest.CaptureFixture[str]) -> None:
    status, reported = run_failing(SettingsError("wrong"), capsys, debug=True)

    assert status == 1
    assert reported.startswith("Traceback")
    assert reported.endswith("\nmayfly: wrong\n")


def test_debug_is_an_option_of_the_command(tmp_path: Path) -> None:
    ended = run(tmp_path, "--debug", "corpus", "show", "nowhere", MAYFLY_HOME=str(tmp_path))

    assert "Traceback" in ended.err
    assert ended.err.splitlines()[-1].startswith("mayfly: there is no corpus 'nowhere'")


@pytest.mark.parametrize(
    ("code", "message"),
    [
        (
            errno.EROFS,
            "/data/x: Read-only file system; use a writable path (--home for corpora)",
        ),
        (errno.ENOSPC, "/data/x: No space left on device; free space on that disk"),
        (errno.EACCES, "/data/x: Permission denied; check its permissions"),
        (
            errno.ELOOP,
            "/data/x: Too many levels of symbolic links; its symbolic links form a loop",
        ),
        (errno.ENOTDIR, "/data/x: Not a directory; a part of the path is a file"),
        (errno.ENAMETOOLONG, "/data/x: File name too long; use a shorter name"),
    ],
)
def test_an_error_of_the_operating_system_is_reported_with_its_remedy(
    code: int, message: str
) -> None:
    reported = user_message(OSError(code, os.strerror(code), "/data/x"))

    assert reported is not None
    assert reported.startswith(message)


def test_an_error_of_the_operating_system_without_a_remedy_is_a_bug() -> None:
    assert user_message(OSError(errno.EBADF, "Bad file descriptor")) is None
    assert user_message(OSError("odd")) is None


@pytest.mark.parametrize(
    ("arguments", "message"),
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
        (("plan", "--save", "{tmp}/a-file/new", "--rate", "1"), "Invalid value for --save"),
        (
            ("adapt", "--prompt", "x", "--corpus", "x", "--out", "{tmp}/a-file/new"),
            "a-file is not a folder",
        ),
    ],
)
def test_unusable_paths_are_reported_without_a_traceback(
    tmp_path: Path, arguments: tuple[str, ...], message: str
) -> None:
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    (tmp_path / "a-file").write_text("def f(): pass\n")

    ended = run(
        tmp_path,
        *(each.format(tmp=tmp_path) for each in arguments),
        MAYFLY_HOME=str(tmp_path),
        MAYFLY_PORT="18701",
    )

    assert message in ended.err + ended.out
    assert "Traceback" not in ended.err


def test_a_closed_pipe_ends_a_command_silently(corpora: Path, words: Embedder) -> None:
    corpus = Corpus.create(corpora, "many", words, "tokenizer")
    for number in range(3000):  # more output than a pipe buffers
        name = f"{number}-{'x' * 100}"
        corpus.add(name, name, [Chunk(0, "text", (1, 2))], words.embed(["text"]))
    corpus.close()
    mayfly = f"{sys.executable} -c 'from serving.cli.main import main; main()'"
    command = f"{mayfly} corpus show many --home {corpora.parent}"

    done = subprocess.run(["bash", "-c", f"{command} | head -1"], capture_output=True, text=True)

    assert done.stdout.split() == ["id", "document", "sequences"]
    assert done.stderr == ""


def test_characters_that_the_terminal_cannot_show_are_escaped(
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
