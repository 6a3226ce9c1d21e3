"""selection: which sequences of a corpus would teach a model most about one prompt.

Usable alone, without Ray and vLLM. It knows texts, token sequences and embeddings, but not how they
are trained on. Its names are imported on first use, so that a command that lists corpora does not
wait for numba.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from selection.config import SelectorConfig
    from selection.corpus.calibration import Calibration
    from selection.corpus.corpus import Corpus
    from selection.embedding import Prompt
    from selection.errors import CorpusError, CorpusNotFoundError, SelectionError
    from selection.request import SelectionRequest
    from selection.retriever import Retriever
    from selection.selection import Selection
    from selection.selector import Selector
    from selection.strategies.registry import STRATEGIES
    from selection.strategies.sift import Choice, irreducible, sift
    from selection.strategies.sift_batch import sift_batch

__all__ = [
    "STRATEGIES",
    "Calibration",
    "Choice",
    "Corpus",
    "CorpusError",
    "CorpusNotFoundError",
    "Prompt",
    "Retriever",
    "Selection",
    "SelectionError",
    "SelectionRequest",
    "Selector",
    "SelectorConfig",
    "irreducible",
    "sift",
    "sift_batch",
]

_MODULES = {
    "STRATEGIES": "strategies.registry",
    "Calibration": "corpus.calibration",
    "Choice": "strategies.sift",
    "Corpus": "corpus.corpus",
    "CorpusError": "errors",
    "CorpusNotFoundError": "errors",
    "Prompt": "embedding",
    "Retriever": "retriever",
    "Selection": "selection",
    "SelectionError": "errors",
    "SelectionRequest": "request",
    "Selector": "selector",
    "SelectorConfig": "config",
    "irreducible": "strategies.sift",
    "sift": "strategies.sift",
    "sift_batch": "strategies.sift_batch",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
