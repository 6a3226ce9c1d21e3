"""selection: which sequences of a corpus would teach a model most about one prompt.

Usable alone: no Ray, no vLLM. It knows texts, token sequences and embeddings, never what is trained on them. Its names
are imported when they are first used: a command that lists corpora does not wait for the compiler of the selection.
"""

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from selection.calibration import Calibration
    from selection.config import SelectorConfig
    from selection.corpus import Corpus
    from selection.embedding import Prompt
    from selection.errors import CorpusError, CorpusNotFoundError, SelectionError
    from selection.registry import STRATEGIES
    from selection.selector import Selection, Selector
    from selection.sift import Choice, irreducible, sift, sift_batch

__all__ = [
    "STRATEGIES",
    "Calibration",
    "Choice",
    "Corpus",
    "CorpusError",
    "CorpusNotFoundError",
    "Prompt",
    "Selection",
    "SelectionError",
    "Selector",
    "SelectorConfig",
    "irreducible",
    "sift",
    "sift_batch",
]

_MODULES = {
    "STRATEGIES": "registry",
    "Calibration": "calibration",
    "Choice": "sift",
    "Corpus": "corpus",
    "CorpusError": "errors",
    "CorpusNotFoundError": "errors",
    "Prompt": "embedding",
    "Selection": "selector",
    "SelectionError": "errors",
    "Selector": "selector",
    "SelectorConfig": "config",
    "irreducible": "sift",
    "sift": "sift",
    "sift_batch": "sift",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)


class _Package(ModuleType):
    """This package: `sift` is the function, also once the module of that name has been imported."""

    @property
    def sift(self) -> Any:
        return __getattr__("sift")

    @sift.setter
    def sift(self, module: ModuleType) -> None:
        """What the import system does with every module of a package; here it would hide the function."""


sys.modules[__name__].__class__ = _Package
