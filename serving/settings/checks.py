"""Checks of settings before a server starts.

`check_settings` takes about a second: it reads the files that the settings name, without torch or
transformers. `check_tokenizers` needs transformers, which takes longer to import, and
`check_vllm_arguments` needs vLLM, which takes longest.
"""

from __future__ import annotations

import json
import logging
from contextlib import closing
from typing import TYPE_CHECKING

from serving.engine.config import EngineConfig
from serving.environment import hide_packages
from serving.errors import ModelFilesError, SettingsError
from serving.settings.corpus import check_corpus
from serving.settings.settings import Settings

if TYPE_CHECKING:
    from serving.config import Config


def check_settings(settings: Settings, *, is_server: bool = True) -> None:
    """Check the values of the settings and the files that they name.

    Args:
        settings: the settings.
        is_server: whether they are of a server, whose model vLLM must have LoRA for.

    Raises:
        SettingsError: a value, a key or a flag of vLLM is invalid.
        ModelFilesError: the model or the embedder cannot be used.
        CorpusError: the corpus does not exist, cannot be opened, or was made with another embedder.
    """
    from serving.api_keys.database import check_keys
    from serving.api_keys.keys import Keys
    from serving.engine.vllm_flags import check_flags
    from serving.http.browsers import parse_hosts, parse_origins
    from serving.settings.architecture import check_architecture
    from serving.settings.model_files import check_embedder, check_model

    auto, limits = settings.budgets()
    parse_hosts(settings.allowed_host or ())
    # First, since keys may be in the database.
    check_corpora(settings)
    parse_origins(settings.allowed_origin or (), settings.has_keys)
    keys = Keys(settings.key_digests(), settings.absolute_key_file, auto, limits)
    check_keys(keys, settings.location)
    check_flags(settings.vllm or ())
    check_model(settings.base_model)
    if is_server:
        check_architecture(settings.base_model)
    check_precision(settings.base_model)
    check_embedder(settings.embedder, settings.base_model)
    if settings.corpus is not None:
        check_corpus(settings.location, settings.corpus, settings.embedder)


def check_corpora(settings: Settings) -> None:
    """Check that the corpora can be reached, and that their database can do what is asked of it.

    Raises:
        SettingsError: shards of corpora in a database.
        CorpusError: the database cannot be used.
    """
    if not settings.corpora:
        return
    if settings.shards:
        raise SettingsError("--shards is for corpora in a folder: leave it out with --corpora")
    from selection.corpus.lookup import list_corpora

    list_corpora(settings.location)


def checked_config(settings: Settings) -> Config:
    """The configuration of checked settings, with its tokenizers and vLLM's arguments checked.

    It imports torch and transformers, and hides packages, so it needs a process of its own.

    Raises:
        SettingsError, ModelFilesError, CorpusError, BaseModelError, StartError: as
            `Settings.config`, `check_tokenizers` and `check_vllm_arguments`.
    """
    hide_packages()
    config = settings.config()
    check_tokenizers(config)
    check_vllm_arguments(config.engine)
    return config


def check_vllm_arguments(engine: EngineConfig) -> None:
    """Check the flags and values that only vLLM knows, if the user has chosen any.

    This imports vLLM then, so it needs a process of its own.

    Raises:
        StartError: vLLM refuses one.
    """
    if engine.vllm_flags or engine.tool_call_parser or engine.dtype != EngineConfig.dtype:
        from serving.engine.vllm_arguments import check_arguments

        # They would warn that a CPU has no Triton, and that a flag overrides another.
        for name in ("torch._library", "vllm"):
            logging.getLogger(name).setLevel(logging.ERROR)
        check_arguments(engine)


def check_precision(model: str) -> None:
    """Check that a base model whose files are on this machine is not quantised.

    Args:
        model: hub id or folder.

    Raises:
        ModelFilesError: it is; the trainer has no gradients through quantised weights.
    """
    from serving.settings.model_files import local_folder

    folder = local_folder(model)
    if folder is None or not (folder / "config.json").is_file():
        return
    quantization = json.loads((folder / "config.json").read_bytes()).get("quantization_config")
    if quantization:
        method = quantization.get("quant_method", "unknown method")
        raise ModelFilesError(
            f"the model {model!r} is quantised ({method}), and adapters are trained on weights in "
            "full precision: use the model that it was made from; on a GPU, "
            "`-- --quantization fp8` lets vLLM quantise its own copy"
        )


def check_tokenizers(config: Config) -> None:
    """Check the key file, and that the model's tokenizer can be loaded and is that of the corpus.

    Without this check, the server would fail minutes later and in another process.

    Raises:
        SettingsError: the key file is invalid.
        ModelFilesError: the tokenizer of the model cannot be loaded.
        ExampleError: the file of the chat template cannot be read.
        CorpusError: the corpus does not exist, or was made with another tokenizer or chat template.
    """
    from selection.corpus.corpus import Corpus
    from selection.examples.rendering import Renderer
    from selection.examples.templates import set_chat_template
    from selection.ingest.ingest import tokenizer_digest
    from serving.api_keys.keys import Keys
    from serving.settings.model_files import load_tokenizer

    Keys(config.key_digests, config.key_file, config.auto, config.limits)
    tokenizer = load_tokenizer(config.engine.model)
    set_chat_template(tokenizer, config.selector.chat_template)
    if config.corpus is not None:
        with closing(Corpus.open(config.selector.root, config.corpus)) as corpus:
            corpus.check_tokenizer(tokenizer_digest(tokenizer), Renderer(tokenizer).digest)
