"""Files: which files are read of the paths and packages that a person names, and what each is
called in a corpus.

A file is called by its path as it was given, seen from the current folder; one outside of that, by
its path from the folder that holds all such arguments. So two files never share a name: where they
would, nothing is read.
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
from selection.ingest.readers import NOTEBOOK_SUFFIX, TABLE_SUFFIXES

SKIPPED_FOLDERS = frozenset({"__pycache__", "node_modules", ".git", ".venv", ".cache"})
_PROSE = ".txt .text .md .mdx .mdown .mkd .markdown .rst .adoc .asciidoc .org .textile .tex .sty .bib .qmd .rmd .log .srt"
_DATA = (
    ".csv .tsv .json .jsonc .json5 .yaml .yml .toml .ini .cfg .conf .properties .xml .xsd .xsl .xslt .html .htm .xhtml "
    ".sql .graphql .gql .proto .thrift .avsc .fbs .prisma .tf .hcl .nix .rego .csproj .props .diff .patch .po"
)
_CODE = (
    ".py .pyi .pyx .pxd .c .h .cc .cpp .cxx .hh .hpp .hxx .inl .cu .cuh .cl .m .mm .ino .cs .csx .cshtml .razor .fs "
    ".fsi .fsx .vb .vbs .bas .java .kt .kts .scala .sbt .groovy .gradle .clj .cljs .cljc .edn .rs .go .zig .nim .d .v "
    ".sv .vhd .vhdl .swift .dart .js .jsx .mjs .cjs .ts .tsx .mts .cts .coffee .vue .svelte .astro .css .scss .sass "
    ".less .styl .php .rb .erb .rake .pl .pm .pod .lua .r .jl .ml .mli .hs .elm .purs .ex .exs .eex .heex .erl .hrl "
    ".lisp .el .scm .rkt .lean .agda .idr .f .f90 .f95 .f03 .pas .asm .s .sol .gd .hx .cr .tcl .awk .sh .bash .zsh "
    ".fish .ps1 .psm1 .psd1 .bat .cmd .cmake .mk .mak .bzl .bazel .j2 .jinja .jinja2 .hbs .ejs .pug .haml .glsl .vert "
    ".frag .hlsl .wgsl .metal .wat"
)
_TEXT_SUFFIXES = frozenset(f"{_PROSE} {_DATA} {_CODE}".split())
_READ_SUFFIXES = _TEXT_SUFFIXES | TABLE_SUFFIXES | {NOTEBOOK_SUFFIX}
_PLAIN = (
    "readme changelog changes history news todo authors contributors contributing install license copying notice "
    "dockerfile containerfile makefile gnumakefile jenkinsfile vagrantfile procfile justfile rakefile gemfile "
    "brewfile caddyfile tiltfile build workspace"
)
_PLAIN_NAMES = frozenset(_PLAIN.split())
_NAMES_WITH_VARIANTS = ("dockerfile.", "containerfile.", "makefile.", "jenkinsfile.")


@dataclass(frozen=True)
class FoundFile:
    """A file to read.

    Attributes:
        path: where it is.
        name: what it is called in a corpus.
        former: what earlier versions called it.
        bytes: its size.
    """

    path: Path
    name: str
    former: str
    bytes: int


@dataclass(frozen=True)
class Findings:
    """The files to read, in order, and what is left out of the folders.

    Attributes:
        files: each once, however many arguments lead to it.
        left_out: how many files of each ending are not read.
        folders: names of the folders that are not looked into.
        problems: what could not be looked at, with the reason.
    """

    files: tuple[FoundFile, ...]
    left_out: Mapping[str, int] = field(default_factory=dict)
    folders: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()


def package_folder(name: str) -> Path:
    """The folder of an installed Python package, found without importing it.

    Raises:
        CorpusError: no such package, or one without a folder.
    """
    try:
        spec = importlib.util.find_spec(name) if name.isidentifier() else None
    except (ImportError, ValueError):
        spec = None
    if spec is None or not spec.submodule_search_locations:
        raise CorpusError(
            f"no installed Python package {name!r} with a folder of its own (give the import name)"
        )
    return Path(next(iter(spec.submodule_search_locations)))


def find_files(path: Path) -> list[Path]:
    """The files to read under a path: the file itself, or a folder's text and table files, sorted.

    Raises:
        CorpusError: nothing is there.
    """
    return _Walk().under(path)


def find(
    paths: Sequence[Path], packages: Sequence[str] = (), folder: Path | None = None
) -> Findings:
    """The files to read under several paths and packages, with their names.

    Args:
        paths: files and folders.
        packages: installed Python packages, by import name.
        folder: what relative paths are seen from; None is the current folder.

    Raises:
        CorpusError: a path or a package that is not there, or two files that would have the same
            name.
    """
    here = Path.cwd() if folder is None else folder
    roots = [
        (here / path, base, path) for path, base in zip(paths, _bases(paths, here), strict=True)
    ]
    installed = [package_folder(package) for package in packages]
    roots += [(package, package.parent, package) for package in installed]
    walk = _Walk()
    found: dict[str, FoundFile] = {}
    places: set[str] = set()
    for root, base, given in roots:
        absolute = Path(os.path.abspath(root))
        # An argument that leads into the current folder by way of a link is called by its place
        # there.
        start = absolute if absolute.is_relative_to(base) else Path(os.path.realpath(root))
        for file in walk.under(root, given):
            place = os.path.realpath(file)
            if place in places:
                continue
            places.add(place)
            inside = file.relative_to(root)
            name = (start / inside).relative_to(base).as_posix()
            if name in found:
                raise CorpusError(
                    f"{shown(found[name].path)} and {shown(file)} would both be called {name!r}: "
                    "run the command in a folder that holds both, so that their paths tell them apart"
                )
            before = Path(os.path.realpath(root)).name
            former = before if file == root else f"{before}/{inside.as_posix()}"
            found[name] = FoundFile(file, name, former, _size(file))
    return Findings(
        tuple(found.values()),
        dict(sorted(walk.left_out.items(), key=lambda each: (-each[1], each[0]))),
        tuple(sorted(walk.folders)),
        tuple(walk.problems),
    )


def shown(path: Path) -> str:
    """A path as it can be printed, whatever bytes its name has."""
    return os.fsencode(path).decode(errors="backslashreplace")


def _bases(paths: Sequence[Path], here: Path) -> list[Path]:
    """What each path is named from: the current folder, or the one that holds all paths outside of
    it.
    """

    def inside(path: Path) -> bool:
        return Path(os.path.abspath(here / path)).is_relative_to(here) or Path(
            os.path.realpath(here / path)
        ).is_relative_to(here)

    outside = [os.path.dirname(os.path.abspath(here / path)) for path in paths if not inside(path)]
    common = Path(os.path.commonpath(outside)) if outside else here
    return [here if inside(path) else common for path in paths]


class _Walk:
    """Finds the files under paths, and remembers what it left out."""

    def __init__(self) -> None:
        self.left_out: Counter[str] = Counter()
        self._passed: set[Path] = set()
        self.folders: set[str] = set()
        self.problems: list[str] = []

    def under(self, root: Path, given: Path | None = None) -> list[Path]:
        """The files to read, sorted; `given` is what an error calls the root.

        Raises:
            CorpusError: there is no file and no folder.
        """
        called = shown(given or root)
        try:
            mode = root.stat().st_mode
        except FileNotFoundError:
            raise CorpusError(f"{called} does not exist") from None
        except (OSError, ValueError) as problem:
            raise CorpusError(
                f"{called} cannot be read: {getattr(problem, 'strerror', None) or problem}"
            ) from problem
        if stat.S_ISREG(mode):
            return [root]
        if not stat.S_ISDIR(mode):
            raise CorpusError(f"{called} is neither a file nor a folder")
        files: list[Path] = []
        for folder, folders, names in os.walk(root, onerror=self._unreadable):
            skipped = SKIPPED_FOLDERS.intersection(folders)
            self.folders |= skipped
            folders[:] = [name for name in folders if name not in skipped]
            for name in names:
                file = Path(folder, name)
                if not _is_read(file):
                    if file in self._passed:
                        continue
                    self._passed.add(file)
                    self.left_out[
                        file.suffix.lower() or (name if name.startswith(".") else "")
                    ] += 1
                elif file.is_file():
                    files.append(file)
                elif file.is_symlink():
                    self.problems.append(f"{shown(file)} leads nowhere")
        return sorted(files)

    def _unreadable(self, problem: OSError) -> None:
        self.problems.append(f"{shown(Path(problem.filename))} cannot be read: {problem.strerror}")


def _size(file: Path) -> int:
    try:
        return file.stat().st_size
    except OSError:  # reading it will say why
        return 0


def _is_read(file: Path) -> bool:
    name = file.name.lower()
    return (
        file.suffix.lower() in _READ_SUFFIXES
        or name in _PLAIN_NAMES
        or name.startswith(_NAMES_WITH_VARIANTS)
    )
