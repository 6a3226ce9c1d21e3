"""Imports a GGUF file: a folder in transformers' format, which vLLM and the trainer load.

transformers maps the tensors, the configuration and the tokenizer. The weights are written in
bfloat16, whatever the file rounded them to. The folder appears under its name only when it is
complete.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from selection.errors import first_line
from serving.errors import ModelFilesError
from serving.models.card import ModelCard

# Takes a stage and its size, returns a function that takes what is done.
OnStage = Callable[[str, int], Callable[[int], None]]

_MAGIC = b"GGUF"
_BLOCK_BYTES = 1 << 22
_BYTES_OF_A_WEIGHT = 2  # bfloat16
# Types of GGUF weights below 16 bits, such as Q4_1, IQ3_S, TQ2_0 and MXFP4.
_QUANTISED = re.compile(r"(?:I?Q|TQ|MXFP)(\d)")
_SCALED = (
    "the file scales its rotary positions, which transformers does not read: "
    "answers to long prompts may be worse than those of the original model"
)


def import_gguf(
    file: Path,
    folder: Path,
    on_stage: OnStage = lambda _stage, _total: lambda _: None,
) -> ModelCard:
    """Import a GGUF file into a new or empty folder.

    Args:
        file: the GGUF file.
        folder: where the model is written.
        on_stage: called with what is done next and its size in bytes (0 if it is not counted);
            what it returns is called with the number of bytes done since the last call.

    Returns:
        The card, which is in the folder, too.

    Raises:
        ModelFilesError: the file is not a GGUF file, is damaged, or has an architecture that
            transformers cannot read; the folder is not empty; or its disk has too little space.
    """
    file, folder = file.expanduser().absolute(), folder.expanduser().absolute()
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ModelFilesError(f"{folder} already exists; name a new or empty folder")
    on_stage("reading the header", 0)
    header = _Header(file)
    folder.parent.mkdir(parents=True, exist_ok=True)
    needed, free = header.weights * _BYTES_OF_A_WEIGHT, shutil.disk_usage(folder.parent).free
    if needed > free:
        raise ModelFilesError(
            f"cannot import {file}: the model needs {needed / 1e9:.1f} GB and the disk of {folder} "
            f"has {free / 1e9:.1f} GB; free some space, or name a folder on another disk"
        )
    sha256 = _digest(file, on_stage("computing the SHA-256", file.stat().st_size))
    with TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as temporary:
        made = Path(temporary) / "model"
        parameters = _convert(file, made, on_stage)
        card = ModelCard(
            file.name,
            sha256,
            header.license,
            header.architecture,
            parameters,
            header.quantisation,
            header.bits,
            header.note,
        )
        card.write(made)
        try:
            made.rename(folder)
        except OSError as problem:
            raise ModelFilesError(f"cannot write {folder}: {problem.strerror}") from problem
    return card


class _Header:
    """What the header of a GGUF file says.

    Attributes:
        architecture: llama.cpp's name of the architecture.
        license: the licence; None if the file states none.
        weights: number of weights.
        quantisation, bits, note: as in `ModelCard`.
    """

    def __init__(self, file: Path) -> None:
        with file.open("rb") as stream:
            if stream.read(len(_MAGIC)) != _MAGIC:
                raise ModelFilesError(f"{file} is not a GGUF file")
        from gguf import GGUFReader
        from transformers.integrations.gguf.utils import is_gguf_arch_supported
        from transformers.modeling_gguf_pytorch_utils import GGUF_SUPPORTED_ARCHITECTURES

        # The reader raises exceptions of any kind for damaged files.
        try:
            reader = GGUFReader(file)
            fields = {
                key: field.contents()
                for key, field in reader.fields.items()
                if key.startswith(("general.", "split.")) or key.endswith(".rope.scaling.type")
            }
            self.architecture = str(fields["general.architecture"])
            names, types = set(), Counter[str]()
            for tensor in reader.tensors:
                names.add(tensor.name)
                types[tensor.tensor_type.name] += int(tensor.n_elements)
        except Exception as problem:
            raise ModelFilesError(
                f"{file} is damaged or incomplete ({first_line(problem)}): "
                "download or copy it again"
            ) from problem
        if fields.get("split.count", 1) > 1:
            raise ModelFilesError(
                f"{file} is one of {fields['split.count']} parts of a model: join them first, "
                "with llama.cpp's `llama-gguf-split --merge`"
            )
        known = map(_plain, GGUF_SUPPORTED_ARCHITECTURES)
        if not is_gguf_arch_supported(self.architecture) and _plain(self.architecture) not in known:
            raise ModelFilesError(
                f"{file} has the architecture {self.architecture!r}, which transformers cannot "
                "read from GGUF; use the original model, in safetensors"
            )
        named = fields.get("general.license") or fields.get("general.license.name")
        self.license = str(named) if named else None
        self.weights = types.total()
        most = types.most_common(1)[0][0] if types else ""
        quantised = _QUANTISED.match(most)
        self.quantisation = most if quantised else None
        self.bits = int(quantised[1]) if quantised else None
        scaling = fields.get(f"{self.architecture}.rope.scaling.type", "none")
        scaled = scaling != "none" or "rope_freqs.weight" in names
        self.note = _SCALED if scaled else None


def _plain(architecture: str) -> str:
    """The name without the hyphens and underscores, in which llama.cpp and transformers differ."""
    return architecture.replace("-", "").replace("_", "")


def _digest(file: Path, on_read: Callable[[int], None]) -> str:
    sha256 = hashlib.sha256()
    with file.open("rb") as stream:
        while block := stream.read(_BLOCK_BYTES):
            sha256.update(block)
            on_read(len(block))
    return sha256.hexdigest()


def _convert(file: Path, folder: Path, on_stage: OnStage) -> int:
    """Write the model and the tokenizer into a folder; returns the number of parameters."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    source: dict[str, Any] = {"gguf_file": file.name, "local_files_only": True}
    # The library raises exceptions of any kind for what it cannot read.
    try:
        on_stage("converting the tokenizer", 0)
        tokenizer = AutoTokenizer.from_pretrained(file.parent, **source)
        on_stage("converting the weights", 0)
        model_class: Any = AutoModelForCausalLM
        model, loading = model_class.from_pretrained(
            file.parent,
            **source,
            dtype=torch.bfloat16,
            quantization_config=GgufConfig(dequantize=True),
            output_loading_info=True,
        )
    except Exception as problem:
        raise ModelFilesError(
            f"transformers cannot read {file}: {first_line(problem)}"
        ) from problem
    # The library fills weights that it does not find with random numbers.
    if missing := sorted(loading["missing_keys"]):
        raise ModelFilesError(
            f"transformers cannot read {file}: it finds no {missing[0]} in it "
            f"({len(missing)} weights are missing)"
        )
    on_stage("writing the model", 0)
    folder.mkdir()
    # What is saved is no longer quantised.
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.save_pretrained(folder)
    _save_tokenizer(tokenizer, folder, int(model.config.vocab_size))
    # The weights are written readable for their owner only, unlike all other files.
    for weights in folder.glob("*.safetensors"):
        weights.chmod((folder / "config.json").stat().st_mode)
    return int(model.num_parameters())


def _save_tokenizer(tokenizer: Any, folder: Path, vocabulary: int) -> None:
    """Save the tokenizer without tokens that the model does not have.

    The library adds GPT-2's special token to byte-level tokenizers, which may lack it: a text that
    contains it would have a token beyond the embeddings.

    Args:
        tokenizer: the tokenizer.
        folder: where it is saved.
        vocabulary: number of tokens of the model.
    """
    for name, token in tokenizer.special_tokens_map.items():
        if isinstance(token, str) and tokenizer.convert_tokens_to_ids(token) >= vocabulary:
            setattr(tokenizer, name, None)
    tokenizer.save_pretrained(folder)
    file = folder / "tokenizer.json"
    saved = json.loads(file.read_text(encoding="utf-8"))
    saved["added_tokens"] = [each for each in saved["added_tokens"] if each["id"] < vocabulary]
    file.write_text(json.dumps(saved, ensure_ascii=False, indent=2), encoding="utf-8")
