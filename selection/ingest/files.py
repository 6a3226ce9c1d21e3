"""Files: which files under the given paths and packages are read, and their names in a corpus. The
suffixes that are read are listed in `selection.ingest.readers`.

The name of a file is its path relative to the current folder; of a file outside the current folder,
the path relative to the folder that contains all such arguments. Two files never share a name:
where they would, nothing is read.
"""

from __future__ import annotations

import importlib.util
import os
import stat
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from selection.corpus.sqlite_store import CorpusError
from selection.ingest.readers import is_readable

SKIPPED_FOLDERS = frozenset({"__pycache__", "node_modules", ".git", ".venv", ".cache"})


@dataclass(frozen=True)
class SourceFile:
    """A file to read.

    Attributes:
        path: path of the file.
        name: its name in a corpus.
        former: its name in earlier versions.
        bytes: its size.
    """

    path: Path
    name: str
    former: str
    bytes: int


@dataclass(frozen=True)
class FileListing:
    """The files to read, in order, and what is skipped in their folders.

    Attributes:
        files: each once, however many arguments lead to it.
        skipped: number of files that are not read, by suffix.
        skipped_folders: names of the folders that are not searched.
        problems: paths that cannot be read, with the reason.
    """

    files: tuple[SourceFile, ...]
    skipped: Mapping[str, int] = field(default_factory=dict)
    skipped_folders: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()


def package_folder(name: str) -> Path:
    """The folder of an installed Python package, found without importing it.

    Raises:
        CorpusError: the package is not installed, or has no folder.
    """
    try:
        spec = importlib.util.find_spec(name) if name.isidentifier() else None
    except (ImportError, ValueError):
        spec = None
    if spec is None or not spec.submodule_search_locations:
        raise CorpusError(
            f"no installed Python package {name!r} has a folder of its own: check its import name"
        )
    return Path(next(iter(spec.submodule_search_locations)))


def find_files(path: Path) -> list[Path]:
    """The files to read under a path: the file itself, or a folder's text and table files, sorted.

    Raises:
        CorpusError: the path does not exist.
    """
    return _FileFinder().find(path)


def list_files(
    paths: Sequence[Path], packages: Sequence[str] = (), folder: Path | None = None
) -> FileListing:
    """The files to read under several paths and packages, with their names.

    Args:
        paths: files and folders.
        packages: import names of installed Python packages.
        folder: what relative paths are relative to; None is the current folder.

    Raises:
        CorpusError: a path or a package does not exist, or two files would have the same name.
    """
    here = Path.cwd() if folder is None else folder
    roots = [
        (here / path, base, path) for path, base in zip(paths, _bases(paths, here), strict=True)
    ]
    installed = [package_folder(package) for package in packages]
    roots += [(package, package.parent, package) for package in installed]
    finder = _FileFinder()
    files: dict[str, SourceFile] = {}
    real_paths: set[str] = set()
    for root, base, argument in roots:
        absolute = Path(os.path.abspath(root))
        # An argument that is a link into the current folder is named by its target there.
        start = absolute if absolute.is_relative_to(base) else Path(os.path.realpath(root))
        for file in finder.find(root, argument):
            real_path = os.path.realpath(file)
            if real_path in real_paths:
                continue
            real_paths.add(real_path)
            inside = file.relative_to(root)
            name = (start / inside).relative_to(base).as_posix()
            if name in files:
                raise CorpusError(
                    f"{printable(files[name].path)} and {printable(file)} would both be named "
                    f"{name!r}: run the command in a folder that contains both, so that their "
                    "paths differ"
                )
            root_name = Path(os.path.realpath(root)).name
            former = root_name if file == root else f"{root_name}/{inside.as_posix()}"
            files[name] = SourceFile(file, name, former, _size(file))
    return FileListing(
        tuple(files.values()),
        dict(sorted(finder.skipped.items(), key=lambda each: (-each[1], each[0]))),
        tuple(sorted(finder.skipped_folders)),
        tuple(finder.problems),
    )


def printable(path: Path) -> str:
    """A path as printable text, whatever bytes it has."""
    return os.fsencode(path).decode(errors="backslashreplace")


def _bases(paths: Sequence[Path], here: Path) -> list[Path]:
    """The folder that each path's name is relative to: the current folder, or the one that contains
    all paths outside it.
    """

    def inside(path: Path) -> bool:
        return Path(os.path.abspath(here / path)).is_relative_to(here) or Path(
            os.path.realpath(here / path)
        ).is_relative_to(here)

    outside = [os.path.dirname(os.path.abspath(here / path)) for path in paths if not inside(path)]
    common = Path(os.path.commonpath(outside)) if outside else here
    return [here if inside(path) else common for path in paths]


class _FileFinder:
    """Finds the files under paths, and records what it skips."""

    def __init__(self) -> None:
        self.skipped: Counter[str] = Counter()
        self._skipped_paths: set[Path] = set()
        self.skipped_folders: set[str] = set()
        self.problems: list[str] = []

    def find(self, root: Path, argument: Path | None = None) -> list[Path]:
        """The files to read, sorted; errors name the root as `argument`.

        Raises:
            CorpusError: the root is neither a file nor a folder, or cannot be read.
        """
        name = printable(argument or root)
        try:
            mode = root.stat().st_mode
        except FileNotFoundError:
            raise CorpusError(f"{name} does not exist") from None
        except (OSError, ValueError) as problem:
            raise CorpusError(
                f"{name} cannot be read: {getattr(problem, 'strerror', None) or problem}"
            ) from problem
        if stat.S_ISREG(mode):
            return [root]
        if not stat.S_ISDIR(mode):
            raise CorpusError(f"{name} is neither a file nor a folder")
        files: list[Path] = []
        for folder, folders, names in os.walk(root, onerror=self._unreadable):
            skipped = SKIPPED_FOLDERS.intersection(folders)
            self.skipped_folders |= skipped
            folders[:] = [each for each in folders if each not in skipped]
            for file_name in names:
                file = Path(folder, file_name)
                if not is_readable(file):
                    if file in self._skipped_paths:
                        continue
                    self._skipped_paths.add(file)
                    hidden = file_name if file_name.startswith(".") else ""
                    self.skipped[file.suffix.lower() or hidden] += 1
                elif file.is_file():
                    files.append(file)
                elif file.is_symlink():
                    self.problems.append(f"{printable(file)} is a broken link")
        return sorted(files)

    def _unreadable(self, problem: OSError) -> None:
        self.problems.append(
            f"{printable(Path(problem.filename))} cannot be read: {problem.strerror}"
        )


def _size(file: Path) -> int:
    try:
        return file.stat().st_size
    except OSError:
        # Reading the file will report the problem.
        return 0
