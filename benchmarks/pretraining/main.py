"""Pretraining of the bundled base model, from scratch.

A small Llama that has read Python, and has never seen the text of the demo and the benchmarks, so
that what adaptation gains is not recall. The text comes from pinned wheels, read in memory, never
installed or run.

    python -m benchmarks.pretraining.main --out deploy/nano

Limits: a model of 5.6 M parameters writes text that looks like Python, not programs that work, and
it has seen at most 1,024 tokens at once. A seed fixes the data, its order and the initial weights,
but not the last bits, which differ between processors and numbers of threads.

A run can be stopped at any time and continued with `--resume`. The learning rate is constant until
the last quarter of `--tokens`, so a resumed run may have another `--tokens` than before.
"""

import argparse
import json
import math
import platform
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers as hf
from torch import nn
from torch.nn import functional

from benchmarks.pretraining.tokens import prepare
from benchmarks.pretraining.training import TrainConfig, choose_plan, new_model, train
from benchmarks.pretraining.wheels import DataConfig


@torch.inference_mode()
def bits_per_byte(
    model: nn.Module, tokenizer: hf.PreTrainedTokenizerBase, excerpts: list[str], device: str
) -> float:
    """Bits per byte of excerpts, each scored alone, without its first token."""
    nats, size = 0.0, 0
    for excerpt in excerpts:
        ids = tokenizer.encode(excerpt, add_special_tokens=False)
        tokens = torch.tensor([ids], device=device)
        logits = model(input_ids=tokens).logits[0, :-1].float()
        nats += float(functional.cross_entropy(logits, tokens[0, 1:], reduction="sum"))
        # One character is one byte.
        size += sum(len(token) for token in tokenizer.convert_ids_to_tokens(ids[1:]))
    return nats / math.log(2) / size


def export(
    model: Any, tokenizer: hf.PreTrainedTokenizerBase, figures: dict[str, Any], out: Path
) -> None:
    """Write the model in float16, its tokenizer and statistics.

    The files are written to a temporary folder and then moved to `out`.
    """
    with tempfile.TemporaryDirectory(dir=out.parent) as name:
        folder = Path(name)
        model.to("cpu", torch.float16).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        (folder / "training.json").write_text(json.dumps(figures, indent=2) + "\n")
        for path in folder.iterdir():
            path.chmod(0o644)
            path.replace(out / path.name)


def main() -> None:
    """Run the recipe."""
    parser = argparse.ArgumentParser(description="Train the bundled base model from scratch.")
    parser.add_argument(
        "--out",
        type=Path,
        required=True,
        help="folder of data.txt, and of the trained model",
    )
    parser.add_argument(
        "--tokens", type=int, default=17_000_000, help="tokens to train on (default: %(default)s)"
    )
    parser.add_argument(
        "--cache",
        type=Path,
        default=Path(".cache/nano"),
        help="folder of wheels, tokens and checkpoint (default: %(default)s)",
    )
    parser.add_argument(
        "--resume", action="store_true", help="continue from the checkpoint in the cache"
    )
    parser.add_argument(
        "--compare", type=Path, help="folder of another model to score on the same held-out text"
    )
    options = parser.parse_args()
    config, plan = TrainConfig(), choose_plan()
    tokenizer, data, excerpts, figures = prepare(
        options.out / "data.txt", options.cache, DataConfig(), config.seed
    )
    model = new_model(len(tokenizer), config, plan.attention).to(plan.device)
    parameters = sum(p.numel() for p in model.parameters())
    print(f"{plan}; {parameters:,} parameters; {len(data):,} tokens of text", flush=True)
    training = train(
        model, data, options.tokens, config, plan, options.cache / "checkpoint.pt", options.resume
    )
    result: dict[str, Any] = {
        "parameters": parameters,
        "tokens_seen": training["tokens"],
        "seconds": round(training["seconds"]),
        "training_loss": round(float(np.mean(training["losses"][-100:])), 4),
        "held_out_bits_per_byte": round(bits_per_byte(model, tokenizer, excerpts, plan.device), 4),
    }
    if options.compare:
        other: Any = hf.AutoModelForCausalLM.from_pretrained(options.compare, dtype=torch.float32)
        other_tokenizer: Any = hf.AutoTokenizer.from_pretrained(options.compare)
        result["compared_bits_per_byte"] = round(
            bits_per_byte(other, other_tokenizer, excerpts, "cpu"), 4
        )
    print(json.dumps(result))
    versions = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": hf.__version__,
    }
    settings = {"training": asdict(config), "plan": asdict(plan), "versions": versions}
    export(model, tokenizer, {**result, **settings, "data": figures}, options.out)


if __name__ == "__main__":
    main()
