"""What selection raises for its users to mend: one tree, whose messages say what is wrong and what
to do.

Everything else that is raised is a bug. Imports nothing, so that a command can name these before it
loads anything.
"""

from __future__ import annotations


class SelectionError(ValueError):
    """Something that the user of a corpus, an embedder or a selector can mend."""


class CorpusError(SelectionError):
    """A corpus that cannot be used as asked; the message says what to do.

    Whoever asked may be far away: where a corpus lies on this machine is in a note (`add_note`),
    never in the message.
    """


class CorpusNotFoundError(CorpusError):
    """No corpus of that name."""


class LibraryError(SelectionError):
    """What a library cannot do as it was asked; the message says why."""


class MissingError(LibraryError):
    """There is no such store, file or batch."""


class ReadOnlyError(LibraryError):
    """A store that its reader sees, but does not own."""


class EmbedderError(SelectionError):
    """An embedder that cannot be loaded, or that cannot embed what it was given."""


class SelectionOptionError(SelectionError):
    """An invalid option of chunking or of a selection strategy."""


def first_line(problem: BaseException) -> str:
    """What a library's exception says first; its kind where it says nothing."""
    return next(iter(str(problem).strip().splitlines()), type(problem).__name__)
