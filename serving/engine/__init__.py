"""vLLM: the engine, and how adapters reach it."""
