"""Errors of training that users can fix: one tree, whose messages say what is wrong and what to do.

Any other exception is a bug. Imports nothing, so that a command can name these before it loads
torch.
"""

from __future__ import annotations


class AdapterError(ValueError):
    """An error that the user of a trainer can fix."""


class BaseModelError(AdapterError):
    """A base model that cannot be loaded, or that adapters cannot be trained on."""


class TrainingOptionError(AdapterError):
    """An invalid option of training, or an invalid training sequence."""


def first_line(problem: BaseException) -> str:
    """The first line of an exception's message, or its class name if the message is empty."""
    return next(iter(str(problem).strip().splitlines()), type(problem).__name__)
