"""BaseModel: the frozen model that adapters are trained on, loaded once.

It turns rows of tokens into losses, in the precision that suits its processor. Two optimisations
are tried at the start: blockwise losses, for models whose logits are a linear layer over the last
hidden states (`adapters.model.loss`), and on a CPU fused modules (`adapters.model.fused_cpu`). One
that would change losses or gradients is left out, with a warning in the log. It does not depend on
LoRA.

Shapes: M rows of a batch, S tokens of the longest row, N scored tokens, H hidden size,
V vocabulary.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import torch
from torch.nn import functional

from adapters.config import PRECISIONS as PRECISIONS
from adapters.errors import BaseModelError, TrainingOptionError, first_line
from adapters.model.fused_cpu import fuse, restore
from adapters.model.loss import cross_entropy
from adapters.model.projections import check_text_only
from adapters.model.row import Row

log = logging.getLogger(__name__)


class BaseModel:
    """A causal language model, frozen.

    Args:
        name: hub id or folder of the model; safetensors only.
        device: "cpu", "cuda" or "auto".
        precision: one of `adapters.config.PRECISIONS`.

    Attributes:
        model: transformers' own model.
        vocabulary: number of tokens in the vocabulary.
        context: longest sequence in tokens.
        parameters: number of parameters.

    Raises:
        BaseModelError: the model cannot be loaded, or is multimodal.
        TrainingOptionError: unknown precision.
    """

    def __init__(self, name: str, device: str = "auto", precision: str = "auto") -> None:
        from transformers import AutoModelForCausalLM

        if precision not in PRECISIONS:
            raise TrainingOptionError(
                f"unknown precision {precision!r}: one of {', '.join(PRECISIONS)}"
            )
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        on_gpu = device != "cpu"
        if precision == "auto":
            precision = "bfloat16" if on_gpu or _multiplies_bfloat16() else "float32"
        self.device, self.precision = device, precision
        try:
            model: Any = AutoModelForCausalLM.from_pretrained(
                name,
                use_safetensors=True,
                dtype=torch.bfloat16 if precision == "bfloat16" else torch.float32,
                attn_implementation="sdpa" if on_gpu else "eager",
            )
            check_text_only(model.config)
        # A library may raise anything on damaged files; `--debug` shows the cause in its traceback.
        except Exception as problem:
            raise BaseModelError(
                f"cannot load the base model {name!r}: {first_line(problem)}"
            ) from problem
        self.model = model.to(device).eval().requires_grad_(False)
        self.vocabulary = int(model.config.vocab_size)
        self.context = int(getattr(model.config, "max_position_embeddings", 2048))
        self.parameters = sum(parameter.numel() for parameter in model.parameters())
        self._blockwise = False
        self._choose_fast_paths(name)

    def check(self, sequence: Sequence[int]) -> None:
        """Validate a training sequence.

        Raises:
            TrainingOptionError: the sequence has fewer than two tokens, more than the context
                length, or tokens outside the vocabulary.
        """
        if not 2 <= len(sequence) <= self.context:
            raise TrainingOptionError(
                f"a training sequence has {len(sequence)} tokens; it needs 2 to {self.context}"
            )
        if not 0 <= min(sequence) <= max(sequence) < self.vocabulary:
            raise TrainingOptionError(
                f"a training sequence has tokens outside the model's vocabulary (0 to "
                f"{self.vocabulary - 1}): use the model's own tokenizer"
            )

    def losses(self, rows: Sequence[Row]) -> torch.Tensor:
        """Mean loss in nats per token [M] of each row's scored tokens.

        Rows are padded at their ends, which earlier tokens of a causal model do not see. The output
        layer is applied only to hidden states that predict a scored token, where it is linear.
        """
        # Torch disables oneDNN for good once a matrix product runs out of memory, and is ten times
        # as slow without it.
        if not torch.backends.mkldnn.enabled:
            torch.backends.mkldnn.set_flags(True)  # type: ignore[no-untyped-call]
        longest = max(map(len, rows))
        ids_MS = torch.tensor([[*row.tokens, *[0] * (longest - len(row))] for row in rows])
        counts = [row.scored_tokens for row in rows]
        # Positions of the hidden states that predict each scored token, and the token's row.
        states_N = torch.cat(
            [
                torch.arange(start, end) + m * longest - 1
                for m, row in enumerate(rows)
                for start, end in row.scored
            ]
        )
        rows_N = torch.arange(len(rows)).repeat_interleave(torch.tensor(counts))
        tokens_N = ids_MS.flatten()[states_N + 1]
        ids_MS, states_N, rows_N, tokens_N = (
            part.to(self.device) for part in (ids_MS, states_N, rows_N, tokens_N)
        )
        output: Any = self.model.get_output_embeddings()
        # An output layer that is adapted itself is no plain linear layer.
        if self._blockwise and isinstance(output, torch.nn.Linear):
            hidden_MSH = self.model.base_model(ids_MS, use_cache=False).last_hidden_state
            nats_N = cross_entropy(
                hidden_MSH.flatten(0, 1)[states_N], output.weight, output.bias, tokens_N, counts
            )
        else:
            logits_NV = self.model(ids_MS, use_cache=False).logits.flatten(0, 1)[states_N]
            nats_N = functional.cross_entropy(logits_NV.float(), tokens_N, reduction="none")
        totals_M = torch.zeros(len(rows), dtype=nats_N.dtype, device=self.device).index_add(
            0, rows_N, nats_N
        )
        return totals_M / torch.tensor(counts, device=self.device)

    @torch.no_grad()
    def would_generate(self, row: Row) -> bool:
        """Whether greedy decoding generates the scored tokens after those before them."""
        ids_1S = torch.tensor([row.tokens], device=self.device)
        next_S = self.model(ids_1S, use_cache=False).logits[0].argmax(-1).tolist()
        return all(
            next_S[i - 1] == row.tokens[i] for start, end in row.scored for i in range(start, end)
        )

    def _choose_fast_paths(self, name: str) -> None:
        self._blockwise = self._output_is_linear()
        if not self._blockwise:
            log.warning(
                "the logits of %s are not a linear layer over its last hidden states: losses are "
                "computed from whole logits, which needs more memory",
                name,
            )
        if self.device != "cpu":
            return
        plain = self._sample_losses()
        if fuse(self.model) and not self._agrees(plain):
            restore(self.model)
            log.warning(
                "the fused CPU modules change the losses of %s: it is trained with its own, slower "
                "modules",
                name,
            )

    @torch.no_grad()
    def _output_is_linear(self) -> bool:
        """Whether the logits equal the output layer applied to the last hidden states."""
        output = self.model.get_output_embeddings()
        if not isinstance(output, torch.nn.Linear):
            return False
        ids_1S = torch.arange(min(16, self.context, self.vocabulary), device=self.device)[None]
        logits_SV = self.model(ids_1S, use_cache=False).logits[0].float()
        linear_SV = output(
            self.model.base_model(ids_1S, use_cache=False).last_hidden_state[0]
        ).float()
        return linear_SV.shape == logits_SV.shape and torch.allclose(
            linear_SV, logits_SV, rtol=1e-3, atol=1e-5
        )

    def _sample_losses(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Losses of two short rows, and the gradient with respect to their token embeddings."""
        longest = min(16, self.context)
        rows = [
            Row.of([(7 * m + 5 * s + 1) % self.vocabulary for s in range(longest - m)])
            for m in range(2)
        ]
        embedded: list[torch.Tensor] = []

        def capture(_module: Any, _arguments: Any, output: torch.Tensor) -> None:
            embedded.append(output.requires_grad_())

        hook = self.model.get_input_embeddings().register_forward_hook(capture)
        try:
            losses_M = self.losses(rows)
            (gradient,) = torch.autograd.grad(losses_M.sum(), embedded[0])
        finally:
            hook.remove()
        return losses_M.detach(), gradient

    def _agrees(self, plain: tuple[torch.Tensor, torch.Tensor]) -> bool:
        # The relative difference that rounding alone may make.
        tolerance = 1e-4 if self.precision == "float32" else 0.1
        try:
            found = self._sample_losses()
        except (AttributeError, TypeError, RuntimeError):
            return False
        return all(
            bool((a - b).norm() <= tolerance * b.norm()) for a, b in zip(found, plain, strict=True)
        )


def _multiplies_bfloat16() -> bool:
    """Whether this CPU has instructions for bfloat16; without them it is slower than float32."""
    capabilities = torch.cpu.get_capabilities()
    return bool(capabilities.get("amx_bf16") or capabilities.get("avx512_bf16"))
