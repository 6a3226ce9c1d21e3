"""Trains the bundled base model, deploy/nano, from scratch: `python benchmarks/pretrain.py --out deploy/nano`.

Purpose: a small Llama of our own that has read Python and has never seen what the demo and the benchmarks test on, so
that what adaptation gains is not recall. The text comes out of pinned wheels, read in memory, never installed or run.

Limits: a model of 5.6 M parameters writes text that looks like Python, not programs that work. It has seen 1,024 tokens
at once at the most. A seed fixes data, order and first weights, but not the last bits: kernels and thread counts
differ between processors. Choices between kernels are by what the processor can; on a CPU with AMX a step takes about
half the time of one in float32, and compiled half the time of one that is not.

Stop it at any time and go on with `--resume`. The rate of learning stays level until the last quarter of `--tokens`, so
a resumed run may have a smaller or a larger `--tokens` than the one that it goes on from.
"""

import argparse
import hashlib
import json
import math
import platform
import random
import re
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import torch
import transformers
from numpy.typing import NDArray
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor, nn
from torch.nn import functional
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

HELD_OUT = ("huggingface-hub", "hypothesis", "openai", "rich")
"""Distributions that are scored, never trained on."""

NEVER = (
    *("networkx", "vllm", "ray", "fastapi", "starlette", "peft"),
    *("rich", "hypothesis", "openai", "huggingface_hub", "typer", "sentence_transformers"),
)
"""Names of folders and files, less endings, that are left out wherever they lie: tests and calibration use them."""

VENDORED = ("_vendor", "_vendored", "vendor", "vendored", "extern", "externals", "third_party", "_distutils")
"""Folders in which packages keep copies of other packages."""

BOS, EOS, PAD = "<s>", "</s>", "<pad>"
CHAT_TEMPLATE = "{% for m in messages %}{{ m['content'] }}\n{% endfor %}"
PRE_TOKENS = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+(?=\S)|\s+(?!\S)|\s+"
"""A name takes the mark before it (`.append`, `_size`), marks the line end after them; digits go by threes."""

WHEEL_TAGS = (
    *("--only-binary=:all:", "--python-version=3.11", "--implementation=cp", "--platform=manylinux2014_x86_64"),
    *(f"--platform=manylinux_2_{glibc}_x86_64" for glibc in (24, 27, 28)),
)
"""The wheels that data.txt pins, whatever machine this runs on: they are read, not installed."""


@dataclass(frozen=True, slots=True)
class DataConfig:
    """What is read, and how much of it."""

    endings: tuple[str, ...] = (".py", ".pyi", ".md", ".rst", ".txt")
    min_bytes: int = 200
    max_bytes: int = 100_000
    """Longer files are tables or generated."""
    package_bytes: int = 5_000_000
    """At most this much of one distribution, so that no style prevails."""
    tokenizer_bytes: int = 30_000_000
    """The tokenizer is trained on this much."""
    vocabulary: int = 4096
    excerpts: int = 50
    """Held-out excerpts a distribution."""
    excerpt_chars: int = 1600
    """About 512 tokens. Excerpts are fixed as text, so that models with different tokenizers score the same bytes."""


@dataclass(frozen=True, slots=True)
class TrainConfig:
    """The model's shape and its training."""

    hidden: int = 256
    layers: int = 6
    heads: int = 4
    mlp: int = 640
    positions: int = 2048
    chunk: int = 1024
    """Text is shuffled in pieces of this many tokens."""
    window: int = 256
    """Tokens seen at once before the decay: attention over more costs more than it teaches at first."""
    decay_window: int = 1024
    """Tokens seen at once in the decay, which teaches the far positions."""
    batch_tokens: int = 8192
    warmup_tokens: int = 400_000
    decay_share: float = 0.25
    muon_rate: float = 0.02
    adam_rate: float = 3e-3
    clip: float = 1.0
    seed: int = 17
    report_steps: int = 20
    checkpoint_seconds: float = 100.0
    evaluate_tokens: int = 4_000_000


@dataclass(frozen=True, slots=True)
class Plan:
    """What this machine's processor is given to do."""

    device: str
    bf16: bool
    attention: str
    compiled: bool


@dataclass(slots=True)
class Progress:
    """Where a run stands; saved with its checkpoint."""

    tokens: int = 0
    seconds: float = 0.0
    losses: list[float] = field(default_factory=list)


def choose_plan() -> Plan:
    """Choose number format and kernels by what the processor can do.

    On a CPU whose bfloat16 is emulated a product takes ten times as long as in float32. Compiled, eager attention was
    faster than sdpa at 256 tokens (12,000 tokens a second and 10,500 on two cores), and each about 1.8 times as fast
    as uncompiled. Compiling needs a C++ compiler on a CPU.
    """
    if torch.cuda.is_available():
        return Plan("cuda", torch.cuda.is_bf16_supported(), "sdpa", True)
    can = torch.cpu.get_capabilities()
    bf16 = bool(can.get("amx_bf16") or can.get("avx512_bf16"))
    return Plan("cpu", bf16, "eager", any(shutil.which(name) for name in ("g++", "clang++", "c++")))


def fetch(requirements: Path, cache: Path) -> list[Path]:
    """Download the pinned wheels, with pip and its own settings, and return them sorted by name."""
    wheels = cache / "wheels"
    pins = [line.split() for line in requirements.read_text().splitlines() if "==" in line]
    digests = {pin[-1].removeprefix("--hash=sha256:"): pin[0] for pin in pins}

    def present() -> dict[str, Path]:
        found = {hashlib.sha256(path.read_bytes()).hexdigest(): path for path in wheels.glob("*.whl")}
        return {digest: path for digest, path in found.items() if digest in digests}

    if len(present()) < len(digests):
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--require-hashes", *WHEEL_TAGS]
        subprocess.run([*command, "--dest", str(wheels), "--requirement", str(requirements)], check=True)
    if missing := [name for digest, name in digests.items() if digest not in present()]:
        raise SystemExit(f"pip did not deliver {', '.join(missing)}")
    return sorted(present().values(), key=lambda path: path.name.lower())


def distribution(wheel: Path) -> str:
    """Return a wheel's distribution name, normalised."""
    return re.sub(r"[-_.]+", "-", wheel.name.split("-")[0]).lower()


def texts(wheel: Path, config: DataConfig, *, held_out: bool) -> Iterator[str]:
    """Yield the text files of a wheel, in an order that a hash of their names fixes."""
    with zipfile.ZipFile(wheel) as archive:
        members = sorted(archive.infolist(), key=lambda member: hashlib.sha256(member.filename.encode()).digest())
        for member in members:
            path = PurePosixPath(member.filename)
            parts = {part.lower().split(".")[0] for part in path.parts}
            if path.suffix not in config.endings or not config.min_bytes <= member.file_size <= config.max_bytes:
                continue
            if (
                not parts.isdisjoint(VENDORED)
                or path.parts[0].endswith(".dist-info")
                or not (held_out or parts.isdisjoint(NEVER))
            ):
                continue
            try:
                text = archive.read(member).decode()
            except UnicodeDecodeError:
                continue
            if "\0" not in text and max(map(len, text.splitlines()), default=0) <= 1000:
                yield text.replace("\r\n", "\n")


def read_data(wheels: Iterable[Path], config: DataConfig) -> tuple[list[str], dict[str, list[str]]]:
    """Return the training documents, no two alike, and the held-out documents of each distribution."""
    by_name = {distribution(wheel): wheel for wheel in wheels}
    held = {name: list(texts(by_name[name], config, held_out=True)) for name in HELD_OUT}
    seen = {text for documents in held.values() for text in documents}
    training: list[str] = []
    for name, wheel in by_name.items():
        if name in HELD_OUT:
            continue
        taken = 0
        for text in texts(wheel, config, held_out=False):
            if taken < config.package_bytes and text not in seen:
                seen.add(text)
                training.append(text)
                taken += len(text.encode())
    return training, held


def train_tokenizer(documents: list[str], config: DataConfig, seed: int) -> Tokenizer:
    """Train a byte-level BPE tokenizer on a sample of the documents."""
    sample, size = [], 0
    for document in random.Random(seed).sample(documents, len(documents)):  # noqa: S311
        if size < config.tokenizer_bytes:
            sample.append(document)
            size += len(document)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PRE_TOKENS), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=config.vocabulary,
        special_tokens=[BOS, EOS, PAD],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(sample, trainer)
    return tokenizer


def pack(tokenizer: Tokenizer, documents: list[str], seed: int) -> NDArray[np.uint16]:
    """Return all documents as one row of tokens, shuffled, each between <s> and </s>."""
    order = random.Random(seed).sample(documents, len(documents))  # noqa: S311
    rows: list[NDArray[np.uint16]] = []
    for start in range(0, len(order), 500):
        for encoding in tokenizer.encode_batch_fast(order[start : start + 500], add_special_tokens=False):
            rows.append(np.asarray([0, *encoding.ids, 1], dtype=np.uint16))
    return np.concatenate(rows)


def excerpts(held: dict[str, list[str]], config: DataConfig, seed: int) -> list[str]:
    """Return the held-out excerpts: from a line's start, as many from each distribution."""
    chosen = []
    for name in sorted(held):
        text = "\n".join(held[name])
        starts = [match.end() for match in re.finditer("\n", text[: -config.excerpt_chars])]
        for start in random.Random(f"{seed} {name}").sample(starts, config.excerpts):  # noqa: S311
            chosen.append(text[start : start + config.excerpt_chars])
    return chosen


@torch.inference_mode()
def bits_per_byte(model: nn.Module, tokenizer: PreTrainedTokenizerBase, passages: list[str], device: str) -> float:
    """Score passages, each by itself: bits a byte over all tokens but each passage's first, which has no context."""
    nats, size = 0.0, 0
    for passage in passages:
        ids = tokenizer.encode(passage, add_special_tokens=False)
        tokens = torch.tensor([ids], device=device)
        logits = model(input_ids=tokens).logits[0, :-1].float()
        nats += float(functional.cross_entropy(logits, tokens[0, 1:], reduction="sum"))
        size += sum(len(str(tokenizer.convert_ids_to_tokens(token))) for token in ids[1:])  # a byte a character
    return nats / math.log(2) / size


class Muon(torch.optim.Optimizer):
    """Momentum whose matrices are made orthogonal (Jordan et al., 2024).

    torch.optim.Muon always multiplies in bfloat16, a trap on a CPU that emulates it, and one matrix at a time. Here the
    format is the caller's, and matrices of one shape go together.
    """

    def __init__(self, params: Iterable[nn.Parameter], rate: float, dtype: torch.dtype) -> None:
        super().__init__(params, {"lr": rate})
        self.dtype = dtype

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Take a step."""
        for group in self.param_groups:
            shapes: dict[torch.Size, list[nn.Parameter]] = {}
            for parameter in group["params"]:
                shapes.setdefault(parameter.shape, []).append(parameter)
            for shape, parameters in shapes.items():
                gradients = torch.stack([p.grad for p in parameters if p.grad is not None])
                state = self.state[parameters[0]]
                momentum = state.setdefault("momentum", torch.zeros_like(gradients))
                momentum.lerp_(gradients, 0.05)
                updates = orthogonal(gradients.lerp(momentum, 0.95).to(self.dtype))
                scale = group["lr"] * max(1.0, shape[0] / shape[1]) ** 0.5
                for parameter, update in zip(parameters, updates, strict=True):
                    parameter.sub_(update.to(parameter.dtype), alpha=scale)


def orthogonal(matrices: Tensor) -> Tensor:
    """Return each matrix with its singular values brought near 1, by five Newton-Schulz steps."""
    wide = matrices.size(-2) <= matrices.size(-1)
    x: Tensor = matrices if wide else matrices.mT
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(5):
        square = x @ x.mT
        x = 3.4445 * x + (-4.7750 * square + 2.0315 * square @ square) @ x
    return x if wide else x.mT


def rate_share(tokens: int, budget: int, config: TrainConfig) -> float:
    """Return the share of the full rate of learning: rising, level, then falling to nothing at the budget."""
    return max(0.0, min(1.0, (tokens + 1) / config.warmup_tokens, (budget - tokens) / (config.decay_share * budget)))


def batch(data: NDArray[np.uint16], tokens: int, window: int, config: TrainConfig) -> tuple[Tensor, Tensor]:
    """Return the inputs and targets that follow after so many tokens; each pass over the data has its own order."""
    chunks = (len(data) - 1) // config.chunk
    first, count = tokens // config.chunk, config.batch_tokens // config.chunk
    order = np.random.default_rng((config.seed, first // chunks)).permutation(chunks)
    picked = order[np.arange(first, first + count) % chunks] * config.chunk
    rows = torch.from_numpy(data[picked[:, None] + np.arange(config.chunk + 1)].astype(np.int64))
    return rows[:, :-1].reshape(-1, window), rows[:, 1:].reshape(-1, window)


def save_atomically(checkpoint: dict[str, Any], path: Path) -> None:
    """Save a checkpoint so that a stop halfway leaves the last one whole."""
    partial = path.with_suffix(".partial")
    torch.save(checkpoint, partial)
    partial.replace(path)


def train(
    model: nn.Module,
    data: NDArray[np.uint16],
    budget: int,
    config: TrainConfig,
    plan: Plan,
    checkpoint: Path,
    resume: bool,
    evaluate: Callable[[], float],
) -> Progress:
    """Train the model in place up to the budget of tokens."""
    hidden = [p for name, p in model.named_parameters() if p.ndim == 2 and "embed" not in name]
    others = [p for name, p in model.named_parameters() if p.ndim != 2 or "embed" in name]
    muon = Muon(hidden, config.muon_rate, torch.bfloat16 if plan.bf16 else torch.float32)
    adam = torch.optim.AdamW(others, lr=config.adam_rate, betas=(0.9, 0.95), weight_decay=0.0)
    optimizers = ((muon, config.muon_rate), (adam, config.adam_rate))
    progress = Progress()
    if resume:
        saved = torch.load(checkpoint, weights_only=True, map_location=plan.device)
        model.load_state_dict(saved["model"])
        muon.load_state_dict(saved["muon"])
        adam.load_state_dict(saved["adam"])
        progress = Progress(**saved["progress"])

    def loss_of(inputs: Tensor, targets: Tensor) -> Tensor:
        logits = model(input_ids=inputs).logits
        return functional.cross_entropy(logits.flatten(0, 1).float(), targets.flatten())

    objective = torch.compile(loss_of) if plan.compiled else loss_of
    started = saved_at = reported_at = time.monotonic()
    before, steps = progress.seconds, 0
    while progress.tokens < budget:
        share = rate_share(progress.tokens, budget, config)
        decaying = progress.tokens >= (1 - config.decay_share) * budget
        inputs, targets = batch(data, progress.tokens, config.decay_window if decaying else config.window, config)
        with torch.autocast(plan.device, dtype=torch.bfloat16, enabled=plan.bf16):
            loss = objective(inputs.to(plan.device), targets.to(plan.device))
        torch.autograd.backward(loss)
        nn.utils.clip_grad_norm_(model.parameters(), config.clip)
        for optimizer, rate in optimizers:
            optimizer.param_groups[0]["lr"] = rate * share
            optimizer.step()
            optimizer.zero_grad()
        progress.losses.append(round(float(loss.detach()), 4))
        progress.tokens += config.batch_tokens
        steps += 1
        now = time.monotonic()
        progress.seconds = before + now - started
        if steps % config.report_steps == 0 or progress.tokens >= budget:
            speed = config.report_steps * config.batch_tokens / (now - reported_at)
            recent = float(np.mean(progress.losses[-config.report_steps :]))
            line = f"{progress.tokens:>12,} tokens  loss {recent:.4f}  {speed:,.0f} tokens/s  rate {share:.2f}"
            print(line, flush=True)
            reported_at = now
        if now - saved_at > config.checkpoint_seconds or progress.tokens >= budget:
            states = {"model": model.state_dict(), "muon": muon.state_dict(), "adam": adam.state_dict()}
            save_atomically({**states, "progress": asdict(progress)}, checkpoint)
            saved_at = now
        if progress.tokens % config.evaluate_tokens < config.batch_tokens:
            print(f"{progress.tokens:>12,} tokens  held-out bits per byte {evaluate():.4f}", flush=True)
    return progress


def export(model: Any, tokenizer: PreTrainedTokenizerBase, figures: dict[str, Any], out: Path) -> None:
    """Write the model, its tokenizer and the figures: all of it beside the folder first, then over what is there."""
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent) as name:
        folder = Path(name)
        model.to("cpu", torch.float16).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        (folder / "training.json").write_text(json.dumps(figures, indent=2) + "\n")
        for path in folder.iterdir():
            path.replace(out / path.name)


def prepare(
    requirements: Path, cache: Path, config: DataConfig, seed: int
) -> tuple[PreTrainedTokenizerBase, NDArray[np.uint16], list[str], dict[str, Any]]:
    """Return the tokenizer, the training tokens, the held-out excerpts and the figures of the data, cached."""
    key = hashlib.sha256(requirements.read_bytes() + repr((config, seed, NEVER, VENDORED)).encode()).hexdigest()[:16]
    folder = cache / "data"
    paths = [folder / name for name in ("tokenizer.json", "tokens.npy", "excerpts.json", "figures.json", "key")]
    if not paths[4].exists() or paths[4].read_text() != key:
        wheels = fetch(requirements, cache)
        documents, held = read_data(wheels, config)
        size = sum(len(document.encode()) for document in documents)
        print(f"{len(documents):,} files, {size / 1e6:.0f} MB", flush=True)
        folder.mkdir(parents=True, exist_ok=True)
        bare = train_tokenizer(documents, config, seed)
        bare.save(str(paths[0]))
        tokens = pack(bare, documents, seed)
        np.save(paths[1], tokens)
        paths[2].write_text(json.dumps(excerpts(held, config, seed)))
        names = sorted("==".join((distribution(wheel), wheel.name.split("-")[1])) for wheel in wheels)
        training = [name for name in names if name.split("==")[0] not in HELD_OUT]
        figures = {"files": len(documents), "bytes": size, "tokens": len(tokens), "packages": training}
        figures["held_out_packages"] = [name for name in names if name not in training]
        paths[3].write_text(json.dumps(figures))
        paths[4].write_text(key)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_file(str(paths[0])), bos_token=BOS, eos_token=EOS, pad_token=PAD
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer, np.load(paths[1]), json.loads(paths[2].read_text()), json.loads(paths[3].read_text())


def new_model(vocabulary: int, config: TrainConfig, attention: str) -> Any:
    """Return an untrained model."""
    torch.manual_seed(config.seed)
    shape = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=config.hidden,
        intermediate_size=config.mlp,
        num_hidden_layers=config.layers,
        num_attention_heads=config.heads,
        num_key_value_heads=config.heads,
        head_dim=config.hidden // config.heads,
        max_position_embeddings=config.positions,
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=2,
    )
    return AutoModelForCausalLM.from_config(shape, attn_implementation=attention)


def main() -> None:
    """Run the recipe."""
    parser = argparse.ArgumentParser(description="Train the bundled base model from scratch.")
    parser.add_argument("--out", type=Path, required=True, help="folder of data.txt, and of the model when it is done")
    parser.add_argument("--tokens", type=int, default=30_000_000, help="tokens to train on")
    parser.add_argument("--cache", type=Path, default=Path(".cache/nano"), help="wheels, tokens and checkpoint")
    parser.add_argument("--resume", action="store_true", help="go on from the checkpoint in the cache")
    parser.add_argument("--compare", type=Path, help="folder of another model to score on the same held-out text")
    options = parser.parse_args()
    config, plan = TrainConfig(), choose_plan()
    print(f"{plan}, {torch.get_num_threads()} threads", flush=True)
    tokenizer, data, passages, figures = prepare(options.out / "data.txt", options.cache, DataConfig(), config.seed)
    model = new_model(len(tokenizer), config, plan.attention).to(plan.device)
    parameters = sum(p.numel() for p in model.parameters())
    print(f"{parameters:,} parameters, {len(data):,} tokens of text", flush=True)

    def evaluate() -> float:
        return bits_per_byte(model, tokenizer, passages, plan.device)

    checkpoint = options.cache / "checkpoint.pt"
    progress = train(model, data, options.tokens, config, plan, checkpoint, options.resume, evaluate)
    result: dict[str, Any] = {
        "parameters": parameters,
        "tokens_seen": progress.tokens,
        "seconds": round(progress.seconds),
        "held_out_bits_per_byte": round(evaluate(), 4),
        "training_loss": round(float(np.mean(progress.losses[-100:])), 4),
    }
    if options.compare:
        other: Any = AutoModelForCausalLM.from_pretrained(options.compare, dtype=torch.float32)
        score = bits_per_byte(
            other.to(plan.device), AutoTokenizer.from_pretrained(options.compare), passages, plan.device
        )
        result["compared_bits_per_byte"] = round(score, 4)
    versions = {"python": platform.python_version(), "torch": torch.__version__}
    versions |= {"transformers": transformers.__version__}
    result |= {"seed": config.seed, "training": asdict(config), "plan": asdict(plan), "versions": versions}
    export(model, tokenizer, {**result, "data": figures}, options.out)
    print(json.dumps({name: result[name] for name in result if name not in ("training", "plan", "versions")}))


if __name__ == "__main__":
    main()
