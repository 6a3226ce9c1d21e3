"""Which files are read of what a person names, what is left out, and that no two are called the
same.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from selection.corpus.sqlite_store import CorpusError
from selection.ingest.files import find, find_files, package_folder


def write(path: Path, content: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def test_a_folder_gives_its_text_and_table_files_in_order(tmp_path: Path) -> None:
    wanted = ["a.txt", "b/c.py", "b/d/rows.jsonl", "z.MD"]
    for name in [
        *wanted,
        "image.png",
        "noext",
        ".git/x.txt",
        "b/__pycache__/c.py",
        "node_modules/p/i.js",
    ]:
        write(tmp_path / name, "content")
    (tmp_path / "folder.txt").mkdir()

    assert [str(file.relative_to(tmp_path)) for file in find_files(tmp_path)] == wanted


def test_a_file_is_taken_whatever_its_name(tmp_path: Path) -> None:
    file = write(tmp_path / "LICENSE", "free")

    assert find_files(file) == [file]


def test_a_path_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match="nowhere does not exist"):
        find_files(tmp_path / "nowhere")


def test_an_installed_package_is_found_by_its_import_name() -> None:
    import json as imported

    assert package_folder("json") == Path(imported.__file__).parent


@pytest.mark.parametrize(
    "name", ["no_such_package_here", "", "not-a-name", "json.decoder", "../json", "this", "sys"]
)
def test_what_is_no_package_with_a_folder_is_refused(name: str) -> None:
    with pytest.raises(CorpusError, match="no installed Python package"):
        package_folder(name)


def named(paths: list[str | Path], folder: Path) -> list[str]:
    """Names of the files that are found, seen from a folder."""
    return [file.name for file in find([Path(path) for path in paths], folder=folder).files]


@pytest.fixture
def two_apis(tmp_path: Path) -> Path:
    """A folder with two folders of the same name."""
    for name in ("a/api/README.md", "b/api/README.md", "a/api/more/x.py"):
        write(tmp_path / "work" / name, name)
    return tmp_path / "work"


def test_a_file_is_called_by_its_path_as_it_was_given(two_apis: Path) -> None:
    every = ["a/api/README.md", "a/api/more/x.py", "b/api/README.md"]

    assert named(["a/api", "b/api"], two_apis) == every
    assert named(["."], two_apis) == every
    assert named(["./a/../b/api/README.md"], two_apis) == ["b/api/README.md"]
    assert named([two_apis / "a" / "api"], two_apis) == every[:2]
    assert named([".", "README.md"], two_apis / "b" / "api") == ["README.md"]


def test_files_outside_of_the_current_folder_are_called_by_their_path_from_their_common_folder(
    two_apis: Path,
) -> None:
    elsewhere = write(two_apis.parent / "elsewhere" / "here.md", "here").parent

    assert named([two_apis / "b" / "api"], elsewhere) == ["api/README.md"]
    assert named(["../work/b/api/README.md"], elsewhere) == ["README.md"]
    assert named([two_apis / "a" / "api", two_apis / "b" / "api"], elsewhere) == [
        "a/api/README.md",
        "a/api/more/x.py",
        "b/api/README.md",
    ]
    assert named([two_apis / "b" / "api" / "README.md", "here.md"], elsewhere) == [
        "README.md",
        "here.md",
    ]


def test_a_package_is_called_by_its_import_name(tmp_path: Path) -> None:
    found = find([], ["json"], folder=tmp_path).files

    assert "json/__init__.py" in [file.name for file in found]
    assert all(file.name == file.former for file in found)


def test_a_file_that_several_arguments_lead_to_is_found_once(two_apis: Path) -> None:
    (two_apis / "link.md").symlink_to("a/api/README.md")

    names = named(["a", ".", "a/api/README.md", two_apis / "b"], two_apis)

    assert names == ["a/api/README.md", "a/api/more/x.py", "b/api/README.md"]


def test_two_files_that_would_be_called_the_same_are_named_both(two_apis: Path) -> None:
    write(two_apis.parent / "elsewhere" / "api" / "README.md", "another")

    with pytest.raises(
        CorpusError,
        match=r"work/b/api/README.md and .*elsewhere/api/README.md would both be called",
    ) as e:
        named([two_apis / "b" / "api", "api"], two_apis.parent / "elsewhere")
    assert "'api/README.md'" in str(e.value)


def test_the_name_that_earlier_versions_gave_is_known(two_apis: Path) -> None:
    found = find([Path("a/api"), Path("b/api/README.md")], folder=two_apis).files

    assert [file.former for file in found] == ["api/README.md", "api/more/x.py", "README.md"]


def test_what_is_left_out_is_counted_by_ending(tmp_path: Path) -> None:
    for name in (
        "a.bin",
        "b.BIN",
        "b/c.bin",
        "r.docx",
        "data",
        ".hidden",
        "a.md",
        "node_modules/x.js",
        "b/.git/config",
    ):
        write(tmp_path / name, "content")

    findings = find([Path("."), Path("b")], folder=tmp_path)

    assert [file.name for file in findings.files] == ["a.md"]
    assert findings.left_out == {".bin": 3, "": 1, ".docx": 1, ".hidden": 1}
    assert findings.folders == (".git", "node_modules")


@pytest.mark.parametrize(
    "name",
    [
        *(
            "A.cs",
            "a.mdx",
            "a.markdown",
            "a.tsv",
            "a.vue",
            "a.log",
            "a.ipynb",
            "a.svelte",
            "a.proto",
            "main.tf",
            "a.R",
        ),
        *(
            "Dockerfile",
            "Dockerfile.dev",
            "Makefile",
            "README",
            "Jenkinsfile",
            "a.gradle",
            "a.CMake",
            "x.ps1",
            "x.zig",
        ),
    ],
)
def test_ordinary_text_files_are_read(tmp_path: Path, name: str) -> None:
    assert find_files(write(tmp_path / name, "text").parent) == [tmp_path / name]


def test_links_that_lead_nowhere_and_folders_that_may_not_be_read_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "gone.md").symlink_to(tmp_path / "nowhere.md")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    write(tmp_path / "locked" / "a.md", "text")
    real = os.scandir

    def scandir(path: str) -> object:
        if path.endswith("locked"):
            raise PermissionError(13, "Permission denied", path)
        return real(path)

    # Fault injection: the superuser, as whom tests may run, can read every folder.
    monkeypatch.setattr(os, "scandir", scandir)
    findings = find([Path(".")], folder=tmp_path)

    assert findings.files == ()
    assert sorted(findings.problems) == [
        f"{tmp_path}/gone.md leads nowhere",
        f"{tmp_path}/locked cannot be read: Permission denied",
    ]
    with pytest.raises(
        CorpusError, match=r"^loop cannot be read: Too many levels of symbolic links"
    ):
        find([Path("loop")], folder=tmp_path)


def test_what_is_neither_a_file_nor_a_folder_is_named(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")

    with pytest.raises(CorpusError, match=r"^pipe is neither a file nor a folder$"):
        find([Path("pipe")], folder=tmp_path)
