"""Commands that need no model, and errors that need none to be found, import nothing heavy."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from selection.corpus.corpus import Corpus
from selection.corpus.sqlite_store import Chunk
from selection.embedding import Embedder
from tests.serving.commands import HEAVY, run


@pytest.fixture
def home(corpora: Path, words: Embedder) -> Path:
    """A folder with a corpus of two documents."""
    corpus = Corpus.create(corpora, "nx", words, "tokenizer")
    for name in ("a.py", "b.py"):
        corpus.add(name, name, [Chunk(0, "def f", (1, 2))], words.embed(["def f"]))
    corpus.build_index()
    corpus.close()
    return corpora.parent


@pytest.fixture
def used_port() -> Iterator[int]:
    """A port that is in use."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        yield int(listening.getsockname()[1])


@pytest.mark.parametrize(
    "arguments",
    [
        ("--help",),
        ("--version",),
        ("serve", "--help"),
        ("config",),
        ("config", "--corpus", "nx"),
        ("config", "--example"),
        ("corpus", "list"),
        ("corpus", "show", "nx"),
        ("corpus", "remove", "nx", "--yes"),
        ("model", "list"),
        ("key", "new", "alice"),
        ("calibrate", "--help"),
    ],
)
def test_commands_that_need_no_model_import_nothing_heavy(
    home: Path, arguments: tuple[str, ...]
) -> None:
    embedder = {"MAYFLY_EMBEDDER": "words"} if arguments == ("config", "--corpus", "nx") else {}

    # The embedder `words` does not exist; it must not be looked up on the hub.
    ended = run(home, *arguments, MAYFLY_HOME=str(home), HF_HUB_OFFLINE="1", **embedder)

    assert ended.heavy == set()
    if embedder:
        assert "the embedder 'words'" in ended.err
    else:
        assert ended.status == 0, ended.err
    if arguments[0] != "corpus":
        assert "numpy" not in ended.imported


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("serve", "--corpus", "nowhere"), "there is no corpus 'nowhere' (existing corpora: nx)"),
        (
            ("serve", "--corpus", "nx"),
            "corpus 'nx' was made with the embedder 'words', not 'all-MiniLM-L6-v2'",
        ),
        (
            ("serve", "--model", "/no/such/model"),
            "cannot load the model '/no/such/model': no such folder",
        ),
        (
            ("serve", "--embedder", "/no/such/model"),
            "cannot load the embedder '/no/such/model': no such",
        ),
        (
            ("serve", "--api-key-file", "/no/keys.toml"),
            "cannot read the key file /no/keys.toml: No such file",
        ),
        (("serve", "--budget", "much"), "Compute-Budget"),
        (("serve", "--precision", "float8"), "unknown precision 'float8'"),
        (("serve", "--max-seconds", "inf"), "max-seconds is inf"),
        (
            ("serve", "--config", "/no/settings.toml"),
            "cannot read the settings in /no/settings.toml",
        ),
        (("config", "--model", "/no/such/model"), "cannot load the model '/no/such/model'"),
        (("corpus", "add", "x", "/no/such/path"), "/no/such/path does not exist"),
        (("corpus", "show", "nowhere"), "there is no corpus 'nowhere'"),
        (("corpus", "reembed", "nowhere"), "there is no corpus 'nowhere'"),
        (
            ("corpus", "reembed", "nx", "--embedder", "/no/model"),
            "cannot load the embedder '/no/model'",
        ),
        (("corpus", "shard", "nowhere", "--shards", "2"), "there is no corpus 'nowhere'"),
        (("calibrate", "nowhere"), "there is no corpus 'nowhere'"),
        (
            ("calibrate", "nx", "--model", "/no/such/model"),
            "cannot load the model '/no/such/model'",
        ),
        (("plan", "--model", "/no/such/model"), "cannot load the model '/no/such/model'"),
        (("plan", "--corpus", "nowhere"), "there is no corpus 'nowhere'"),
        (("plan", "--rate", "0"), "it needs to be more than 0"),
        (("plan", "--measured", "/no/such/file"), "cannot read /no/such/file"),
        (
            ("adapt", "--prompt", "x", "--corpus", "nowhere", "--out", "new"),
            "there is no corpus 'nowhere'",
        ),
        (
            ("adapt", "--prompt", "x", "--corpus", "nx", "--out", f"{__file__}/new"),
            f"{__file__} is not a folder",
        ),
        (
            ("adapt", "--prompt", "x", "--corpus", "nx", "--out", "new", "--plan", "odd"),
            "unknown plan 'odd'",
        ),
        (
            ("adapt", "--prompt", "x", "--corpus", "nx", "--out", "new", "--budget", "odd"),
            "Compute-Budget",
        ),
        (("demo", "--home", f"{__file__}/new"), f"{__file__} is not a folder"),
    ],
)
def test_errors_in_arguments_are_found_before_anything_heavy_is_imported(
    home: Path, arguments: tuple[str, ...], message: str
) -> None:
    ended = run(home, *arguments, MAYFLY_HOME=str(home))

    assert message in ended.err
    assert "Traceback" not in ended.err
    # Typer ends with status 2 for an invalid option, and shows the usage, too.
    if "--plan" in arguments:
        assert ended.status == 2
    else:
        assert (ended.status, len(ended.err.strip().splitlines())) == (1, 1)
    assert ended.heavy == set()


@pytest.mark.parametrize("command", ["serve", "demo"])
def test_a_port_in_use_is_reported_before_anything_heavy_is_imported(
    tmp_path: Path, used_port: int, command: str
) -> None:
    ended = run(tmp_path, command, "--port", str(used_port), MAYFLY_HOME=str(tmp_path / "home"))

    assert ended.err == (
        f"mayfly: cannot listen on 127.0.0.1:{used_port}: Address already in use; "
        "try another --port\n"
    )
    assert ended.status == 1
    assert ended.heavy == set()


def test_the_process_of_a_server_imports_ray_and_nothing_that_computes() -> None:
    code = "import sys, serving.local.server; print(*sys.modules)"

    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    computing = {name for name in HEAVY if name not in {"ray", "pyarrow"}}
    assert set(ran.stdout.split()) & computing == set()


def test_shell_completion_knows_commands_and_options(tmp_path: Path) -> None:
    code = "import sys; sys.argv[0] = 'mayfly'; from serving.cli.main import main; main()"
    completions = {"corpus r": "remove", "serve --max-st": "--max-steps"}

    for typed, completion in completions.items():
        line = f"mayfly {typed}"
        answer = subprocess.run(
            [sys.executable, "-c", code],
            env={
                **os.environ,
                "_MAYFLY_COMPLETE": "complete_bash",
                "COMP_WORDS": line,
                "COMP_CWORD": str(len(line.split()) - 1),
            },
            capture_output=True,
            text=True,
        )
        assert completion in answer.stdout.split(), answer.stderr
    script = run(
        tmp_path, "--show-completion", "bash", _TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION="1"
    )
    assert "_MAYFLY_COMPLETE=complete_bash" in script.out
    assert script.heavy == set()
