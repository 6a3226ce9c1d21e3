"""A vLLM plugin that computes the LoRA products of a CPU correctly and faster.

A token without an adapter has the slot index -1. On a CPU, vLLM 0.32 reads that as the last slot,
so a request for the base model gets wrong tokens when it shares a batch with adapted requests (vLLM
issues 48421 and 49656), and it gathers the whole A and B once per token. Here rows with slot -1 are
left unchanged, and a batch without adapters skips the products.

Linear layers use `serving.engine.plugins.cpu_lora_products`. Layers of another form (embeddings,
logits, fully sharded LoRA, other types) use vLLM's own loop over the slices, in which each distinct
slot is one matrix product over its rows. vLLM loads the plugin in each of its processes (entry
point `vllm.general_plugins`); it does nothing on other platforms.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import torch

from serving.engine.plugins.cpu_lora_products import BatchPlan, LayerProducts
from serving.environment import core_share


def register() -> None:
    """Replace the CPU's LoRA products; vLLM may call this repeatedly."""
    from vllm.platforms import current_platform

    if not current_platform.is_cpu():
        return
    from vllm.lora.punica_wrapper import punica_cpu
    from vllm.model_executor.layers.rotary_embedding import RotaryEmbedding

    from serving.engine.plugins.cpu_rotary import flatten_heads

    flatten_heads(RotaryEmbedding)
    punica_cpu.bgmv_shrink = shrink
    punica_cpu.bgmv_expand = expand
    punica_cpu.bgmv_expand_slice = expand_slice
    punica_cpu.sgmv_shrink = _per_token(shrink)
    punica_cpu.sgmv_expand = _per_token(expand)
    punica_cpu.sgmv_expand_slice = _per_token(expand_slice)
    if not hasattr(punica_cpu.PunicaWrapperCPU, "plan"):
        from vllm.lora.layers.base_linear import BaseLinearLayerWithLoRA

        plan_batches(punica_cpu.PunicaWrapperCPU, BaseLinearLayerWithLoRA)
        _prepare_runner(punica_cpu.PunicaWrapperCPU)


def _prepare_runner(wrapper: Any) -> None:
    """Change vLLM's model runner when it creates its first LoRA wrapper.

    Only the process that computes has a runner; importing it here would slow the others' start.
    """
    vllm_init = wrapper.__init__

    def init(self: Any, *args: Any, **kwargs: Any) -> None:
        from vllm.v1.worker.cpu_model_runner import CPUModelRunner

        from serving.engine.plugins.cpu_seeds import rewind_by_state
        from serving.engine.plugins.cpu_threads import share_cores

        rewind_by_state(CPUModelRunner)
        # The replica is busy, which starts vLLM's process.
        if cores := core_share(member=os.getppid()):
            share_cores(CPUModelRunner, cores)
        vllm_init(self, *args, **kwargs)

    wrapper.__init__ = init


def plan_batches(wrapper: Any, linear: Any) -> None:
    """Make vLLM plan each batch once, and skip LoRA where no token has an adapter.

    Args:
        wrapper: vLLM's class of LoRA products.
        linear: vLLM's class of linear layers with LoRA.
    """
    vllm_update, vllm_call = wrapper.update_metadata, linear.__call__
    vllm_set_mapping, vllm_apply = linear.set_mapping, linear._apply_lora_to_output

    def update_metadata(self: Any, *args: Any, **kwargs: Any) -> None:
        vllm_update(self, *args, **kwargs)
        self.plan = BatchPlan.of(self.token_lora_indices.tolist())

    def unless_idle(vllm_product: Any) -> Any:
        # The products work in place, and None stands for an unchanged output.
        def product(self: Any, *args: Any, **kwargs: Any) -> Any:
            idle = self.plan is not None and self.plan.is_idle
            return None if idle else vllm_product(self, *args, **kwargs)

        return product

    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        plan, products = self.punica_wrapper.plan, self.products
        if plan is not None and plan.is_idle:
            return self.base_layer(*args, **kwargs)
        if plan is None or products is None or self.tp_size > 1 or len(args) != 1 or kwargs:
            return vllm_call(self, *args, **kwargs)
        # As vLLM's own way without tensor parallelism, but with fewer calls in Python per layer.
        result = self.base_layer(args[0])
        output = result[0] if isinstance(result, tuple) else result
        if not products.fits(args[0], output, plan):
            return vllm_call(self, args[0])
        products.add(args[0], output, plan)
        return result

    def set_mapping(self: Any, *args: Any, **kwargs: Any) -> None:
        # vLLM calls this once for each layer, when its weights exist and no adapter is loaded.
        vllm_set_mapping(self, *args, **kwargs)
        a, b, slices = self.lora_a_stacked, self.lora_b_stacked, self.output_slices
        if LayerProducts.supports(a, b, slices, self.output_size):
            self.lora_b_stacked = tuple(LayerProducts.transposed(each) for each in b)
            self.products = LayerProducts(a, self.lora_b_stacked)

    def apply_lora(self: Any, x: torch.Tensor, output: torch.Tensor) -> Any:
        products, plan = self.products, self.punica_wrapper.plan
        if products is None or plan is None or not products.fits(x, output, plan):
            return vllm_apply(self, x, output)
        products.add(x, output, plan)
        return output

    wrapper.plan = linear.products = None
    wrapper.update_metadata = update_metadata
    linear.__call__, linear.set_mapping = call, set_mapping
    linear._apply_lora_to_output = apply_lora
    for name in ("add_lora_logits", "add_lora_embedding"):
        setattr(wrapper, name, unless_idle(getattr(wrapper, name)))


def shrink(
    inputs: torch.Tensor,
    weights: torch.Tensor,
    output: torch.Tensor,
    slots: torch.Tensor,
    scaling: float = 1.0,
) -> None:
    """output[:, :rank] = scaling * inputs A^T with the A of each row's slot; 0 without a slot.

    Args:
        inputs: (rows, input width).
        weights: A of all slots, (slots, 1, rank, input width).
        output: (rows, at least rank), overwritten.
        slots: slot of each row, -1 for none.
        scaling: factor of the product.
    """
    rank = weights.shape[-2]
    output[:, :rank] = 0
    for slot, rows in _rows_of_slots(slots):
        a = weights[slot].reshape(weights.shape[-2:]).to(output.dtype)
        output[rows, :rank] = scaling * (inputs[rows].to(output.dtype) @ a.T)


def expand(
    inputs: torch.Tensor,
    weights: torch.Tensor,
    output: torch.Tensor,
    slots: torch.Tensor,
    add_inputs: bool = True,
) -> None:
    """output += inputs B^T with the B of each row's slot; replaces it if not `add_inputs`."""
    width = min(weights.shape[-2], output.shape[1])
    expand_slice(inputs, weights, output, slots, 0, width, add_inputs)


def expand_slice(
    inputs: torch.Tensor,
    weights: torch.Tensor,
    output: torch.Tensor,
    slots: torch.Tensor,
    slice_offset: int,
    slice_size: int,
    add_inputs: bool = True,
) -> None:
    """As `expand`, into the `slice_size` columns of a fused projection from `slice_offset` on."""
    columns = output[:, slice_offset : slice_offset + slice_size]
    if not add_inputs:
        columns.zero_()
    for slot, rows in _rows_of_slots(slots):
        b = weights[slot].reshape(weights.shape[-2:]).to(output.dtype)[:slice_size]
        columns[rows] += inputs[rows].to(output.dtype) @ b.T


def _rows_of_slots(slots: torch.Tensor) -> Iterator[tuple[int, torch.Tensor | slice]]:
    distinct = torch.unique(slots).tolist()
    for slot in distinct:
        if slot >= 0:
            yield slot, slice(None) if len(distinct) == 1 else (slots == slot).nonzero().squeeze(1)


def _per_token(operation: Any) -> Any:
    """An operation with vLLM's signature for prefill: slots and lengths are given per sequence."""

    def prefill(
        inputs: torch.Tensor,
        weights: torch.Tensor,
        output: torch.Tensor,
        _starts: torch.Tensor,
        lengths: torch.Tensor,
        slots_of_sequences: torch.Tensor,
        _batches: int,
        _max_length: int,
        _tokens: int,
        *rest: Any,
        **named: Any,
    ) -> None:
        operation(
            inputs,
            weights,
            output,
            torch.repeat_interleave(slots_of_sequences, lengths),
            *rest,
            **named,
        )

    return prefill
