"""MiniLM: the forward pass of all-MiniLM-L6-v2 (BERT, 6 layers) on a CPU, without padding.

The tokens of several texts stand one after the other, so every product but those of attention is
computed once for all of them, whatever the lengths of the texts; attention is computed text by
text. Where the processor multiplies bfloat16, matrix products and attention are in bfloat16; sums,
layer norms, the mean over the tokens and the vector's length are always in float32.

Equal to sentence-transformers in float32, and several times as fast in bfloat16. The only module
that knows the names of BERT's weights.

Shapes: N texts, T tokens of all texts, S tokens of one text, H heads, D embedding dimensions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn.functional import gelu, layer_norm, linear, normalize

_LAYERS, _HEADS, _NORM_EPSILON = 6, 12, 1e-12
# Tokens of one forward pass. Larger ones leave the processor's caches and are no faster.
_BATCH_TOKENS = 2048


def multiplies_bfloat16() -> bool:
    """Whether this processor has instructions for products in bfloat16 (AMX or AVX-512-BF16)."""
    capabilities = torch.cpu.get_capabilities()
    return bool(capabilities.get("amx_bf16") or capabilities.get("avx512_bf16"))


@dataclass(frozen=True)
class _Linear:
    weight: Tensor
    bias: Tensor

    def __call__(self, x_TD: Tensor) -> Tensor:
        return linear(x_TD.to(self.weight.dtype), self.weight, self.bias)


@dataclass(frozen=True)
class _Norm:
    weight: Tensor
    bias: Tensor

    def __call__(self, x_TD: Tensor) -> Tensor:
        return layer_norm(x_TD, self.weight.shape, self.weight, self.bias, _NORM_EPSILON)


@dataclass(frozen=True)
class _Layer:
    qkv: _Linear
    attention_output: _Linear
    attention_norm: _Norm
    intermediate: _Linear
    output: _Linear
    output_norm: _Norm


class MiniLM:
    """all-MiniLM-L6-v2.

    Args:
        folder: the model's folder, with `model.safetensors`.
        tokenizer: its tokenizer.
        window: tokens of a text that are read, special tokens included; the rest is ignored.
        dtype: of the products; None for bfloat16 where the processor multiplies it, else float32.
    """

    def __init__(
        self, folder: Path, tokenizer: Any, window: int, dtype: torch.dtype | None = None
    ) -> None:
        self._tokenizer, self._window = tokenizer, window
        self._dtype = dtype or (torch.bfloat16 if multiplies_bfloat16() else torch.float32)
        weights = load_file(folder / "model.safetensors")
        table = "embeddings.{}_embeddings.weight"
        self._words_VD = weights[table.format("word")]
        # Each text is one segment, of type 0.
        self._positions_SD = (
            weights[table.format("position")] + weights[table.format("token_type")][0]
        )
        self._norm = self._load_norm(weights, "embeddings.LayerNorm")
        self._layers = [
            self._load_layer(weights, f"encoder.layer.{layer}") for layer in range(_LAYERS)
        ]
        self.dimension = self._words_VD.shape[1]

    def embed(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        """Unit vectors [N, D] of texts, each truncated to its first window."""
        vectors_ND = np.empty((len(texts), self.dimension), np.float32)
        if not texts:
            return vectors_ND
        ids = self._tokenizer(list(texts), truncation=True, max_length=self._window)["input_ids"]
        with torch.inference_mode():
            for first, last in _batches([len(each) for each in ids]):
                vectors_ND[first:last] = self._forward(ids[first:last]).numpy()
        return vectors_ND

    def _forward(self, ids: Sequence[Sequence[int]]) -> Tensor:
        """Unit vectors [N, D] of tokenized texts."""
        lengths = [len(each) for each in ids]
        ids_T = torch.tensor([token for each in ids for token in each])
        positions_TD = torch.cat([self._positions_SD[:length] for length in lengths])
        hidden_TD = self._norm(self._words_VD[ids_T] + positions_TD)
        for layer in self._layers:
            attended_TD = torch.cat(
                [_attend(each) for each in torch.split(layer.qkv(hidden_TD), lengths)]
            )
            hidden_TD = layer.attention_norm(hidden_TD + layer.attention_output(attended_TD))
            expanded = gelu(layer.intermediate(hidden_TD))
            hidden_TD = layer.output_norm(hidden_TD + layer.output(expanded))
        means_ND = torch.stack([each_SD.mean(dim=0) for each_SD in torch.split(hidden_TD, lengths)])
        return normalize(means_ND, dim=1)

    def _load_layer(self, weights: dict[str, Tensor], name: str) -> _Layer:
        attention = f"{name}.attention"
        projections = [
            self._load_linear(weights, f"{attention}.self.{each}")
            for each in ("query", "key", "value")
        ]
        return _Layer(
            _Linear(
                torch.cat([each.weight for each in projections]),
                torch.cat([each.bias for each in projections]),
            ),
            self._load_linear(weights, f"{attention}.output.dense"),
            self._load_norm(weights, f"{attention}.output.LayerNorm"),
            self._load_linear(weights, f"{name}.intermediate.dense"),
            self._load_linear(weights, f"{name}.output.dense"),
            self._load_norm(weights, f"{name}.output.LayerNorm"),
        )

    def _load_linear(self, weights: dict[str, Tensor], name: str) -> _Linear:
        return _Linear(
            weights[f"{name}.weight"].to(self._dtype), weights[f"{name}.bias"].to(self._dtype)
        )

    def _load_norm(self, weights: dict[str, Tensor], name: str) -> _Norm:
        return _Norm(weights[f"{name}.weight"], weights[f"{name}.bias"])


def _attend(qkv_SD: Tensor) -> Tensor:
    """Attention of one text over itself."""
    # The products one by one: the fused kernel is slower on a CPU without AMX.
    q_HSD, k_HSD, v_HSD = qkv_SD.view(len(qkv_SD), 3, _HEADS, -1).permute(1, 2, 0, 3)
    scores_HSS = torch.matmul(q_HSD * q_HSD.shape[-1] ** -0.5, k_HSD.transpose(1, 2))
    return torch.matmul(scores_HSS.softmax(dim=-1), v_HSD).transpose(0, 1).flatten(1)


def _batches(lengths: Sequence[int]) -> list[tuple[int, int]]:
    """First and last (exclusive) text of each forward pass; each has one text at least."""
    starts = [0]
    ends = list(accumulate(lengths, initial=0))
    for text in range(1, len(lengths)):
        if ends[text + 1] - ends[starts[-1]] > _BATCH_TOKENS:
            starts.append(text)
    return list(pairwise([*starts, len(lengths)]))
