"""BaseModel: the frozen model that adapters are trained on, loaded once.

It turns rows of tokens into losses, in the precision that its processor is best at. Two short cuts
are tried at the start, and only taken where losses and gradients stay what they were, else that is
logged: losses in blocks, where they are a linear layer over the last hidden states
(`adapters.model.loss`), and on a CPU faster parts (`adapters.model.fused_cpu`). It knows no LoRA.

Shapes: M rows of a batch, S tokens of the longest row, N tokens whose losses count, H hidden size,
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

log = logging.getLogger(__name__)


class BaseModel:
    """A causal language model, frozen.

    Raises:
        BaseModelError: it cannot be loaded.
        TrainingOptionError: there is no such precision.
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
        # Whatever a library makes of somebody's files: the cause is in the traceback that `--debug`
        # shows.
        except Exception as problem:
            raise BaseModelError(
                f"cannot load the base model {name!r}: {first_line(problem)}"
            ) from problem
        self.model = model.to(device).eval().requires_grad_(False)
        self.vocabulary = int(model.config.vocab_size)
        self.context = int(getattr(model.config, "max_position_embeddings", 2048))
        self.parameters = sum(parameter.numel() for parameter in model.parameters())
        self._in_blocks = False
        self._take_short_cuts(name)

    def check(self, sequence: Sequence[int]) -> None:
        """Refuse what cannot be learnt from.

        Raises:
            ValueError: fewer than two tokens, more than the context has room for, or tokens that
                the model lacks.
        """
        if not 2 <= len(sequence) <= self.context:
            raise TrainingOptionError(
                f"a training sequence has {len(sequence)} tokens; it needs 2 to {self.context}"
            )
        if not 0 <= min(sequence) <= max(sequence) < self.vocabulary:
            raise TrainingOptionError(
                "a training sequence has tokens that the model does not know: another tokenizer's?"
            )

    def losses(self, rows: Sequence[Sequence[int]], start: int = 1) -> torch.Tensor:
        """Mean nats a token [M] of each row's tokens from `start` on, given those before.

        Rows are filled up at their ends to the longest: a causal model's earlier tokens do not see
        that.
        """
        # Once it has found no memory for a product, torch gives oneDNN up for good, and is ten
        # times as slow.
        if not torch.backends.mkldnn.enabled:
            torch.backends.mkldnn.set_flags(True)  # type: ignore[no-untyped-call]
        longest = max(map(len, rows))
        ids_MS = torch.tensor([[*row, *[0] * (longest - len(row))] for row in rows])
        counts = [len(row) - start for row in rows]
        # Which hidden state tells of which token, and in which row.
        states_N = torch.cat(
            [torch.arange(len(row) - start) + m * longest + start - 1 for m, row in enumerate(rows)]
        )
        rows_N = torch.arange(len(rows)).repeat_interleave(torch.tensor(counts))
        tokens_N = ids_MS.flatten()[states_N + 1]
        ids_MS, states_N, rows_N, tokens_N = (
            part.to(self.device) for part in (ids_MS, states_N, rows_N, tokens_N)
        )
        output: Any = self.model.get_output_embeddings()
        # Which it is not while it is adapted itself.
        if self._in_blocks and isinstance(output, torch.nn.Linear):
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

    def _take_short_cuts(self, name: str) -> None:
        self._in_blocks = self._ends_in_a_product()
        if not self._in_blocks:
            log.warning(
                "%s does more with its last hidden states than multiply: its logits are held whole",
                name,
            )
        if self.device != "cpu":
            return
        plain = self._probe()
        if fuse(self.model) and not self._agrees(plain):
            restore(self.model)
            log.warning(
                "%s is not built as its names say: it is trained by its own, slower parts", name
            )

    @torch.no_grad()
    def _ends_in_a_product(self) -> bool:
        """Whether the logits are the output layer's, of the last hidden states: the same numbers,
        in any precision.
        """
        output = self.model.get_output_embeddings()
        if not isinstance(output, torch.nn.Linear):
            return False
        ids_1S = torch.arange(min(16, self.context, self.vocabulary), device=self.device)[None]
        logits_SV = self.model(ids_1S, use_cache=False).logits[0].float()
        mine_SV = output(
            self.model.base_model(ids_1S, use_cache=False).last_hidden_state[0]
        ).float()
        return mine_SV.shape == logits_SV.shape and torch.allclose(
            mine_SV, logits_SV, rtol=1e-3, atol=1e-5
        )

    def _probe(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Losses of two short rows, and their gradients with respect to the embedded tokens."""
        longest = min(16, self.context)
        rows = [
            [(7 * m + 5 * s + 1) % self.vocabulary for s in range(longest - m)] for m in range(2)
        ]
        embedded: list[torch.Tensor] = []

        def watch(_module: Any, _arguments: Any, output: torch.Tensor) -> None:
            embedded.append(output.requires_grad_())

        hook = self.model.get_input_embeddings().register_forward_hook(watch)
        try:
            losses_M = self.losses(rows)
            (gradient,) = torch.autograd.grad(losses_M.sum(), embedded[0])
        finally:
            hook.remove()
        return losses_M.detach(), gradient

    def _agrees(self, plain: tuple[torch.Tensor, torch.Tensor]) -> bool:
        # What two ways of rounding may be apart.
        tolerance = 1e-4 if self.precision == "float32" else 0.1
        try:
            found = self._probe()
        except (AttributeError, TypeError, RuntimeError):
            return False
        return all(
            bool((a - b).norm() <= tolerance * b.norm()) for a, b in zip(found, plain, strict=True)
        )


def _multiplies_bfloat16() -> bool:
    """Whether this CPU has tiles for bfloat16 (AMX). Without them it is slower than float32, not
    faster.
    """
    return bool(torch.cpu.get_capabilities().get("amx_bf16"))
