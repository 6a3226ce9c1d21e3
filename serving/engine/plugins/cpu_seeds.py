"""Seeded sampling on a CPU, for prompts that vLLM computes in several steps.

vLLM samples a token for every request of a step, also for one whose prompt is not complete, and
rewinds the generators of those. The generators of a CPU cannot be rewound by an offset, so vLLM
0.32's core ends with an error. Here their state is kept before sampling, and set again afterwards.
"""

from __future__ import annotations

from typing import Any


def rewind_by_state(runner: Any) -> None:
    """Make a class rewind generators by their state.

    Args:
        runner: vLLM's `CPUModelRunner`.
    """
    if hasattr(runner, "states_before"):
        return
    vllm_sample, vllm_bookkeeping = runner._sample, runner._bookkeeping_sync

    def sample(self: Any, *args: Any, **kwargs: Any) -> Any:
        discarded = self.discard_request_mask.np
        self.states_before = {
            index: generator.get_state()
            for index, generator in self.input_batch.generators.items()
            if discarded[index]
        }
        return vllm_sample(self, *args, **kwargs)

    def bookkeeping(self: Any, *args: Any, **kwargs: Any) -> Any:
        generators = self.input_batch.generators
        for index, state in self.states_before.items():
            generators[index].set_state(state)
        # vLLM rewinds those it finds.
        self.input_batch.generators = {
            index: generator
            for index, generator in generators.items()
            if index not in self.states_before
        }
        try:
            return vllm_bookkeeping(self, *args, **kwargs)
        finally:
            self.input_batch.generators = generators

    runner.states_before = {}
    runner._sample, runner._bookkeeping_sync = sample, bookkeeping
