"""Which files are read under given paths, which are skipped, and that no two share a name."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from selection.corpus.sqlite_store import CorpusError
from selection.ingest.files import find_files, list_files, package_folder


def write(path: Path, content: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def test_a_folder_gives_its_text_and_table_files_in_order(tmp_path: Path) -> None:
    expected = ["a.txt", "b/c.py", "b/d/rows.jsonl", "z.MD"]
    for name in [
        *expected,
        "image.png",
        "noext",
        ".git/x.txt",
        "b/__pycache__/c.py",
        "node_modules/p/i.js",
    ]:
        write(tmp_path / name, "content")
    (tmp_path / "folder.txt").mkdir()

    assert [str(file.relative_to(tmp_path)) for file in find_files(tmp_path)] == expected


def test_a_file_with_any_name_is_read(tmp_path: Path) -> None:
    file = write(tmp_path / "LICENSE", "free")

    assert find_files(file) == [file]


def test_a_missing_path_is_named(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match="nowhere does not exist"):
        find_files(tmp_path / "nowhere")


def test_an_installed_package_is_found_by_its_import_name() -> None:
    import json as imported

    assert package_folder("json") == Path(imported.__file__).parent


@pytest.mark.parametrize(
    "name", ["no_such_package_here", "", "not-a-name", "json.decoder", "../json", "this", "sys"]
)
def test_a_package_without_a_folder_is_refused(name: str) -> None:
    with pytest.raises(CorpusError, match="no installed Python package"):
        package_folder(name)


def names_in(paths: list[str | Path], folder: Path) -> list[str]:
    """Names of the files to read, where paths are relative to a folder."""
    return [file.name for file in list_files([Path(path) for path in paths], folder=folder).files]


@pytest.fixture
def two_apis(tmp_path: Path) -> Path:
    """A folder with two folders of the same name."""
    for name in ("a/api/README.md", "b/api/README.md", "a/api/more/x.py"):
        write(tmp_path / "project" / name, name)
    return tmp_path / "project"


def test_a_file_is_named_by_its_path_from_the_current_folder(two_apis: Path) -> None:
    all_names = ["a/api/README.md", "a/api/more/x.py", "b/api/README.md"]

    assert names_in(["a/api", "b/api"], two_apis) == all_names
    assert names_in(["."], two_apis) == all_names
    assert names_in(["./a/../b/api/README.md"], two_apis) == ["b/api/README.md"]
    assert names_in([two_apis / "a" / "api"], two_apis) == all_names[:2]
    assert names_in([".", "README.md"], two_apis / "b" / "api") == ["README.md"]


def test_files_outside_the_current_folder_are_named_from_their_common_folder(
    two_apis: Path,
) -> None:
    elsewhere = write(two_apis.parent / "elsewhere" / "here.md", "here").parent

    assert names_in([two_apis / "b" / "api"], elsewhere) == ["api/README.md"]
    assert names_in(["../project/b/api/README.md"], elsewhere) == ["README.md"]
    assert names_in([two_apis / "a" / "api", two_apis / "b" / "api"], elsewhere) == [
        "a/api/README.md",
        "a/api/more/x.py",
        "b/api/README.md",
    ]
    assert names_in([two_apis / "b" / "api" / "README.md", "here.md"], elsewhere) == [
        "README.md",
        "here.md",
    ]


def test_the_files_of_a_package_are_named_by_its_import_name(tmp_path: Path) -> None:
    found = list_files([], ["json"], folder=tmp_path).files

    assert "json/__init__.py" in [file.name for file in found]
    assert all(file.name == file.former for file in found)


def test_a_file_under_several_arguments_is_listed_once(two_apis: Path) -> None:
    (two_apis / "link.md").symlink_to("a/api/README.md")

    names = names_in(["a", ".", "a/api/README.md", two_apis / "b"], two_apis)

    assert names == ["a/api/README.md", "a/api/more/x.py", "b/api/README.md"]


def test_two_files_that_would_share_a_name_are_refused(two_apis: Path) -> None:
    write(two_apis.parent / "elsewhere" / "api" / "README.md", "another")

    with pytest.raises(
        CorpusError,
        match=r"project/b/api/README.md and .*elsewhere/api/README.md would both be named",
    ) as e:
        names_in([two_apis / "b" / "api", "api"], two_apis.parent / "elsewhere")
    assert "'api/README.md'" in str(e.value)


def test_the_name_in_earlier_versions_is_known(two_apis: Path) -> None:
    found = list_files([Path("a/api"), Path("b/api/README.md")], folder=two_apis).files

    assert [file.former for file in found] == ["api/README.md", "api/more/x.py", "README.md"]


def test_skipped_files_are_counted_by_suffix(tmp_path: Path) -> None:
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

    listing = list_files([Path("."), Path("b")], folder=tmp_path)

    assert [file.name for file in listing.files] == ["a.md"]
    assert listing.skipped == {".bin": 3, "": 1, ".docx": 1, ".hidden": 1}
    assert listing.skipped_folders == (".git", "node_modules")


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


def test_broken_links_and_unreadable_folders_are_reported(
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

    # Fault injection, because tests may run as the superuser, who can read every folder.
    monkeypatch.setattr(os, "scandir", scandir)
    listing = list_files([Path(".")], folder=tmp_path)

    assert listing.files == ()
    assert sorted(listing.problems) == [
        f"{tmp_path}/gone.md is a broken link",
        f"{tmp_path}/locked cannot be read: Permission denied",
    ]
    with pytest.raises(
        CorpusError, match=r"^loop cannot be read: Too many levels of symbolic links"
    ):
        list_files([Path("loop")], folder=tmp_path)


def test_a_path_that_is_neither_a_file_nor_a_folder_is_named(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")

    with pytest.raises(CorpusError, match=r"^pipe is neither a file nor a folder$"):
        list_files([Path("pipe")], folder=tmp_path)
