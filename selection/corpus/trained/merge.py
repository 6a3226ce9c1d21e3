"""Merging: the parts of a corpus adapter that are nearest to a prompt, averaged into one adapter.

Averaging parameters by similarity is that of test-time model merging (arXiv 2505.14136). Equal
weights would lose what each part has learnt.

Shapes: P parts, K of them that are merged.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

TEMPERATURE = 0.03
MAX_MERGED = 4
# Weights are multiples of 1 / _UNITS, so that similar prompts share one adapter.
_UNITS = 20


def mixture(similarity_P: npt.NDArray[np.float32]) -> list[tuple[int, float]]:
    """The parts to merge and their weights, which add up to 1, largest first.

    Args:
        similarity_P: cosine similarity of each part to the prompt.
    """
    nearest_K = np.argsort(-similarity_P, kind="stable")[:MAX_MERGED]
    scaled_K = similarity_P[nearest_K].astype(np.float64) / TEMPERATURE
    share_K = np.exp(scaled_K - scaled_K.max())
    share_K *= _UNITS / share_K.sum()
    units_K = np.floor(share_K).astype(int)
    # What rounding down has left goes to the largest remainders.
    left = _UNITS - int(units_K.sum())
    units_K[np.argsort(units_K - share_K, kind="stable")[:left]] += 1
    return [
        (int(part), int(units) / _UNITS)
        for part, units in zip(nearest_K, units_K, strict=True)
        if units
    ]


def name_of(parts: Sequence[tuple[str, float]]) -> str:
    """The name of the adapter that consists of these parts with these weights."""
    if len(parts) == 1:
        return parts[0][0]
    digest = hashlib.sha256(json.dumps(sorted(parts)).encode()).hexdigest()
    return f"corpus-{digest[:32]}"


def merged(parts: Sequence[tuple[bytes, float, float]]) -> bytes:
    """The weighted average of adapters, as a safetensors file.

    Args:
        parts: float32 safetensors files of the same LoRA tensors, their weights, which add up to 1,
            and the factors on what each adds to the base model; at least one.

    Raises:
        ValueError: their tensors differ.
    """
    first, _, scaling = parts[0]
    if len(parts) == 1 and scaling == 1:
        return first
    length = 8 + int.from_bytes(first[:8], "little")
    header = first[:length]
    total = np.zeros((len(first) - length) // 4, np.float32)
    for weights, weight, scaling in parts:
        if weights[:length] != header or len(weights) != len(first):
            raise ValueError("adapters of other tensors cannot be averaged")
        # An adapter adds the product B A: either factor takes the square root.
        factor = np.float32(weight * math.sqrt(scaling))
        total += factor * np.frombuffer(weights, np.float32, offset=length)
    return header + total.tobytes()
