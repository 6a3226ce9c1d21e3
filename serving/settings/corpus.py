"""The corpus that settings name: whether it can be used, and its calibration.

Nothing heavy is imported before a corpus is opened.
"""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from selection.corpus.calibration import Calibration
    from selection.location import Location


def check_corpus(corpora: Location, name: str, embedder: str) -> None:
    """Check that a corpus can be opened and was made with an embedder of that name.

    Raises:
        CorpusError: the corpus does not exist, cannot be opened, or was made with another embedder.
    """
    from selection.corpus.corpus import Corpus
    from selection.errors import CorpusError

    with closing(Corpus.open(corpora, name)) as corpus:
        if corpus.embedder != embedder:
            raise CorpusError(
                f"corpus {name!r} was made with the embedder {corpus.embedder!r}, not "
                f"{embedder!r}: use that one (--embedder), or run `mayfly corpus reembed {name} "
                f"--embedder {embedder}`"
            )


def corpus_calibration(corpora: Location, name: str, model: str) -> Calibration | None:
    """The calibration of a corpus for a model; None if it is not calibrated for it.

    Raises:
        CorpusError: the corpus does not exist or cannot be opened.
    """
    from selection.corpus.calibration import calibration_of, is_calibrated, model_digest
    from selection.corpus.corpus import Corpus

    with closing(Corpus.open(corpora, name)) as corpus:
        meta = corpus.meta()
    # The digest reads the model's configuration, so it is computed only if it is needed.
    return calibration_of(meta, model_digest(model)) if is_calibrated(meta) else None
