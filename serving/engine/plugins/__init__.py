"""Everything that Mayfly changes in vLLM.

`cpu_lora`, `parent_death` and `strict_lora` are plugins that vLLM itself loads in each of its
processes. `generate` and `tokenization` change the one `AsyncLLM` object that
`serving.engine.engine` makes.
"""
