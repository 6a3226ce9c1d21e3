"""The panels of `mayfly serve --help` and of the example of a settings file."""

from __future__ import annotations

from typing import Any

# The settings of each panel, with the value that the example shows; None shows the default.
PANELS: dict[str, dict[str, Any]] = {
    "Model": {
        "model": "Qwen/Qwen2.5-0.5B-Instruct",
        "served_model_name": ["my-model"],
        "dtype": None,
        "max_model_len": 4096,
        "tool_call_parser": "hermes",
    },
    "Corpus": {
        "home": "~/.mayfly",
        "corpora": "postgresql://mayfly@db.example/corpora",
        "corpus": "nx",
        "shards": None,
        "embedder": None,
        "regularisation": 0.3,
        "show": 4,
    },
    "Training": {
        "learning_rate": 5e-4,
        "rank": 64,
        "lora_target": ["q_proj"],
        "precision": None,
        "train_corpora": None,
    },
    "Budget": {"budget": "steps=20, seconds=5", "max_steps": None, "max_seconds": None},
    "Examples in requests": {"max_examples": None, "max_example_tokens": None},
    "Capacity": {"max_requests": 128, "max_adaptations": 16, "undegraded": 4, "slots": None},
    "Keys and network": {
        "host": None,
        "port": None,
        "allowed_host": ["mayfly.example"],
        "allowed_origin": ["https://app.example"],
        "api_key": ["mf-..."],
        "api_key_file": "/etc/mayfly/keys.toml",
    },
    "Hardware": {
        "threads": 2,
        "engine_gpus": 0.6,
        "trainer_gpus": 0.4,
        "gpu_memory_utilization": 0.55,
    },
    "Logs": {"log_format": None},
    "vLLM": {"vllm": {"chat-template": "chat.jinja", "max-num-batched-tokens": 512}},
}
