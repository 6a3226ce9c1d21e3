"""The errors of selection that its users can fix: one tree, whose messages say what is wrong and
what to do.

Any other exception is a bug. This module imports nothing, so a command can refer to these errors
before it loads anything else.
"""

from __future__ import annotations


class SelectionError(ValueError):
    """An error that the user of a corpus, an embedder or a selector can fix."""


class CorpusError(SelectionError):
    """A corpus that cannot be used as requested; the message says what to do.

    The message may reach a remote client, so the path of the corpus on this machine is never part
    of it but is attached as a note (`add_note`).
    """


class CorpusNotFoundError(CorpusError):
    """No corpus of that name."""


class CorpusUnavailableError(CorpusError):
    """Corpora whose database cannot be reached now; the same may succeed later."""


class LibraryError(SelectionError):
    """A request that the library of vector stores refuses; the message says why."""


class MissingError(LibraryError):
    """No such vector store, file or batch."""


class ReadOnlyError(LibraryError):
    """A vector store that the principal can see but does not own."""


class EmbedderError(SelectionError):
    """An embedder that cannot be loaded, or that cannot embed its input."""


class ExampleError(SelectionError):
    """An example that is invalid, or that the model's chat template cannot render."""


class SelectionOptionError(SelectionError):
    """An invalid option of chunking or of a selection strategy."""


def first_line(problem: BaseException) -> str:
    """The first line of an exception's message; the name of its class if it has no message."""
    return next(iter(str(problem).strip().splitlines()), type(problem).__name__)
