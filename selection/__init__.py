"""selection: which sequences of a corpus would teach a model most about one prompt.

Usable alone: no Ray, no vLLM. It knows texts, token sequences and embeddings, never what is trained on them.
"""

from selection.corpus import Corpus, CorpusError, CorpusNotFoundError
from selection.selector import Selection, Selector, SelectorConfig
from selection.sift import Choice, sift

__all__ = [
    "Choice",
    "Corpus",
    "CorpusError",
    "CorpusNotFoundError",
    "Selection",
    "Selector",
    "SelectorConfig",
    "sift",
]
