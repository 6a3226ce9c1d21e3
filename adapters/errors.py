"""What training raises for its users to mend: one tree, whose messages say what is wrong and what
to do.

Everything else that is raised is a bug. Imports nothing, so that a command can name these before it
loads torch.
"""

from __future__ import annotations


class AdapterError(ValueError):
    """Something that the user of a trainer can mend."""


class BaseModelError(AdapterError):
    """A base model that cannot be loaded, or that adapters cannot be trained on."""


class TrainingOptionError(AdapterError):
    """An invalid option of training, or an invalid training sequence."""


def first_line(problem: BaseException) -> str:
    """What a library's exception says first; its kind where it says nothing."""
    return next(iter(str(problem).strip().splitlines()), type(problem).__name__)
