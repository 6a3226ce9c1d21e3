"""What tests expect of the embeddings that the default embedder makes."""

from __future__ import annotations

from selection.minilm import multiplies_bfloat16

# How much a number of a text's vector may depend on the texts that are embedded with it: in
# bfloat16, sums of another number of tokens may be rounded in another way.
ROUNDING = 2e-3 if multiplies_bfloat16() else 1e-5
