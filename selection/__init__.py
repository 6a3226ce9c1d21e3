"""selection: which sequences of a corpus would teach a model most about one prompt.

Usable alone: no Ray, no vLLM. It knows texts, token sequences and embeddings, never what is trained on them.
"""

from selection.calibration import Calibration
from selection.corpus import Corpus
from selection.embedding import Prompt
from selection.selector import STRATEGIES, Selection, Selector, SelectorConfig
from selection.sift import Choice, irreducible, sift, sift_batch
from selection.store import CorpusError, CorpusNotFoundError

__all__ = [
    "STRATEGIES",
    "Calibration",
    "Choice",
    "Corpus",
    "CorpusError",
    "CorpusNotFoundError",
    "Prompt",
    "Selection",
    "Selector",
    "SelectorConfig",
    "irreducible",
    "sift",
    "sift_batch",
]
