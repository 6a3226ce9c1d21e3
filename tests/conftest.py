"""Shared fixtures: the bundled model and tokenizer, the real embedder, tiny base models, a tiny
embedder.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import settings

from selection.embedding import Embedder, Embeddings, Prompt, load_embedder
from selection.location import DatabaseLocation
from serving.config import bundled_model
from serving.environment import MODEL_CACHE
from serving.models.catalogue import models_folder

# Processes of `pytest --numprocesses` inherit the environment, in which the folder is hidden below.
INSTALLED_MODELS = Path(os.environ.setdefault("INSTALLED_MODELS", str(models_folder())))
# The default model is nano here and in every command that tests run, whatever is installed.
os.environ[MODEL_CACHE] = os.devnull
# No test depends on how busy the machine is.
settings.register_profile("mayfly", deadline=None)
settings.load_profile("mayfly")
# The models here are tiny; threads that spin on shared cores slow one another.
torch.set_num_threads(1)
# So do those of servers and commands that tests of several processes start at once: each process
# of `pytest --numprocesses` has cores of its own.
if worker := os.environ.get("PYTEST_XDIST_WORKER"):
    _cores, _count = sorted(os.sched_getaffinity(0)), int(os.environ["PYTEST_XDIST_WORKER_COUNT"])
    os.sched_setaffinity(0, _cores[int(worker.removeprefix("gw")) % len(_cores) :: _count])


@pytest.fixture(autouse=True)
def _logged_from_warnings_on() -> None:
    """Whatever a library or an earlier test did to the root logger, whose level ours have."""
    logging.getLogger().setLevel(logging.WARNING)


class WordEmbedder:
    """A real, tiny embedder: each word has a direction of its own, a text is the unit sum of its
    words.
    """

    def __init__(self, name: str = "words", revision: str = "1", dimension: int = 16) -> None:
        self.name, self.revision, self.dimension = name, revision, dimension

    def embed(self, texts: Sequence[str]) -> Embeddings:
        rows = np.zeros((len(texts), self.dimension), np.float32)
        for row, text in zip(rows, texts, strict=True):
            for word in re.findall(r"\w+", text.lower()) or ["nothing"]:
                seed = int.from_bytes(hashlib.sha256(word.encode()).digest()[:8], "little")
                row += (
                    np.random.default_rng(seed).standard_normal(self.dimension).astype(np.float32)
                )
            row /= np.linalg.norm(row)
        return rows

    def windows(self, prompt: Prompt) -> list[str]:
        return [prompt.text]


@pytest.fixture(scope="session")
def nano() -> str:
    """The folder of the bundled base model."""
    return bundled_model()


@pytest.fixture(scope="session")
def tokenizer(nano: str) -> Any:
    """The bundled model's tokenizer."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(nano)


@pytest.fixture(scope="session")
def embedder() -> Embedder:
    """The default embedder, all-MiniLM-L6-v2."""
    return load_embedder()


@pytest.fixture
def words() -> Embedder:
    """An embedder that costs nothing."""
    return WordEmbedder()


@pytest.fixture
def other_words() -> Embedder:
    """The same in name and dimension, with other weights."""
    return WordEmbedder(revision="2")


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The folder of a random Llama of two layers, in safetensors."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(7)
    folder = tmp_path_factory.mktemp("models") / "llama"
    model_class: Any = LlamaForCausalLM
    model_class(LlamaConfig(**_TINY)).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="session")
def tiny_qwen(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The same of a Qwen2, whose q, k and v projections have a bias (made different from zero)."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(8)
    folder = tmp_path_factory.mktemp("models") / "qwen"
    model_class: Any = Qwen2ForCausalLM
    model = model_class(Qwen2Config(**_TINY))
    biases = [
        parameter for name, parameter in model.named_parameters() if name.endswith("proj.bias")
    ]
    assert len(biases) == 3 * 2
    for bias in biases:
        torch.nn.init.normal_(bias, std=0.3)
    model.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="session")
def tiny_gpt2(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The same of a GPT-2, whose projections are Conv1D with a bias (made different from zero); its
    output is tied.
    """
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(9)
    folder = tmp_path_factory.mktemp("models") / "gpt2"
    model_class: Any = GPT2LMHeadModel
    shape: dict[str, Any] = {
        "vocab_size": 128,
        "n_positions": 64,
        "n_embd": 32,
        "n_layer": 2,
        "n_head": 4,
        "initializer_range": 0.2,
    }
    model = model_class(GPT2Config(**shape, bos_token_id=None, eos_token_id=None))
    biases = [
        parameter
        for name, parameter in model.named_parameters()
        if ".c_" in name and name.endswith("bias")
    ]
    assert len(biases) == 4 * 2
    for bias in biases:
        torch.nn.init.normal_(bias, std=0.3)
    model.save_pretrained(folder)
    return str(folder)


@pytest.fixture
def corpora(tmp_path: Path) -> Path:
    """The empty folder of all corpora."""
    root = tmp_path / "corpora"
    root.mkdir()
    return root


_TINY: dict[str, Any] = {
    "vocab_size": 128,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "tie_word_embeddings": False,
    "initializer_range": 0.2,
}


@pytest.fixture(scope="session")
def postgres_url() -> Iterator[str]:
    """The URL of a PostgreSQL database."""
    from tests import postgres_server

    with postgres_server.server() as server, postgres_server.database(server) as url:
        yield url


@pytest.fixture
def postgres(postgres_url: str, tmp_path: Path) -> DatabaseLocation:
    """A PostgreSQL database without corpora."""
    import psycopg

    with psycopg.connect(postgres_url, autocommit=True) as connection:
        if connection.execute("SELECT to_regclass('mayfly.corpora')").fetchone() != (None,):
            connection.execute(
                "TRUNCATE mayfly.corpora, mayfly.files, mayfly.ingest_queue, "
                "mayfly.request_rates, mayfly.api_keys, mayfly.api_keys_required CASCADE"
            )
    return DatabaseLocation(postgres_url, tmp_path / "cache")
