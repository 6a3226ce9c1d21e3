"""The tokenizer of the bundled base model, and the tokens to train on and to score.

What is read, and what is held out, is decided by `benchmarks/pretraining/wheels.py`.
"""

import hashlib
import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import transformers as hf
from numpy.typing import NDArray
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from benchmarks.pretraining.wheels import (
    HELD_OUT,
    NEVER,
    VENDORED,
    DataConfig,
    choose_excerpts,
    fetch,
    read_data,
)

BOS, EOS, PAD = "<s>", "</s>", "<pad>"
CHAT_TEMPLATE = "{% for m in messages %}{{ m['content'] }}\n{% endfor %}"
PRE_TOKENS = (
    r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+(?=\S)|\s+(?!\S)|\s+"
)
"""Names include the mark before them (`.append`), marks the line end after; digits by threes."""


def prepare(
    requirements: Path, cache: Path, config: DataConfig, seed: int
) -> tuple[hf.PreTrainedTokenizerBase, NDArray[np.uint16], list[str], dict[str, Any]]:
    """Return the tokenizer, training tokens, held-out excerpts and statistics of the data.

    All of them are cached in a folder by the digest of their settings.
    """
    key = hashlib.sha256(
        requirements.read_bytes() + repr((config, seed, NEVER, VENDORED, PRE_TOKENS)).encode()
    )
    folder = cache / key.hexdigest()[:16]
    if not (folder / "data.json").exists():
        folder.mkdir(parents=True, exist_ok=True)
        wheels = fetch(requirements, cache / "wheels")
        documents, held_out = read_data(wheels, config)
        documents = random.Random(seed).sample(documents, len(documents))  # noqa: S311
        bare = train_tokenizer(documents, config)
        bare.save(str(folder / "tokenizer.json"))
        np.save(folder / "tokens.npy", tokens := pack(bare, documents))
        size = sum(len(document.encode()) for document in documents)
        split = {
            held_out: [pin for pin in wheels if (pin.split("==")[0] in HELD_OUT) is held_out]
            for held_out in (False, True)
        }
        amounts = {"files": len(documents), "bytes": size, "tokens": len(tokens)}
        figures = {**amounts, "packages": split[False], "held_out_packages": split[True]}
        data = {"figures": figures, "excerpts": choose_excerpts(held_out, config, seed)}
        (folder / "data.json").write_text(json.dumps(data))
    data = json.loads((folder / "data.json").read_text())
    bare = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer: Any = hf.PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=bare,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=PAD,
        chat_template=CHAT_TEMPLATE,
    )
    return tokenizer, np.load(folder / "tokens.npy"), data["excerpts"], data["figures"]


def train_tokenizer(documents: list[str], config: DataConfig) -> Tokenizer:
    """Train a byte-level BPE tokenizer on the first documents."""
    count = np.searchsorted(
        np.cumsum([len(document) for document in documents]), config.tokenizer_bytes
    )
    tokenizer = Tokenizer(models.BPE())
    marks = pre_tokenizers.Split(Regex(PRE_TOKENS), "isolated")
    in_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([marks, in_bytes])
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=config.vocabulary,
        special_tokens=[BOS, EOS, PAD],
        initial_alphabet=alphabet,
        show_progress=False,
    )
    tokenizer.train_from_iterator(documents[: int(count) + 1], trainer)
    return tokenizer


def pack(tokenizer: Tokenizer, documents: list[str]) -> NDArray[np.uint16]:
    """Return all documents as one row of tokens, each between <s> and </s>."""
    rows: list[NDArray[np.uint16]] = []
    for start in range(0, len(documents), 500):
        for encoding in tokenizer.encode_batch_fast(
            documents[start : start + 500], add_special_tokens=False
        ):
            rows.append(np.asarray([0, *encoding.ids, 1], dtype=np.uint16))
    return np.concatenate(rows)
