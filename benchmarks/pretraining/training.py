"""The bundled base model's shape, number format and training, with checkpoints.

Takes tokens as `benchmarks/pretraining/tokens.py` prepares them; neither scores nor exports.
"""

import shutil
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers as hf
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional


@dataclass(frozen=True, slots=True)
class TrainConfig:
    """The model's shape and its training."""

    hidden: int = 256
    layers: int = 6
    heads: int = 4
    mlp: int = 640
    positions: int = 2048
    # Tokens of a row; attention over more costs more than it brings at first.
    window: int = 256
    # Tokens of a row in some batches of the decay, for far positions; also the unit of shuffling.
    long_window: int = 1024
    long_every: int = 4
    batch_tokens: int = 8192
    warmup_tokens: int = 400_000
    decay_share: float = 0.25
    muon_rate: float = 0.02
    adam_rate: float = 3e-3
    clip: float = 1.0
    seed: int = 17
    report_steps: int = 20
    checkpoint_seconds: float = 100.0


@dataclass(frozen=True, slots=True)
class Plan:
    """Number format and kernels for the processor."""

    device: str
    bf16: bool
    attention: str
    compiled: bool


def choose_plan() -> Plan:
    """Choose number format and kernels by the processor's capabilities.

    A CPU that emulates bfloat16 multiplies ten times as slowly in it as in float32; one with AMX is
    faster. Compiled eager attention is the fastest on a CPU, and needs a C++ compiler.
    """
    if torch.cuda.is_available():
        return Plan("cuda", torch.cuda.is_bf16_supported(), "sdpa", True)
    capabilities = torch.cpu.get_capabilities()
    bf16 = bool(capabilities.get("amx_bf16") or capabilities.get("avx512_bf16"))
    return Plan("cpu", bf16, "eager", any(shutil.which(name) for name in ("g++", "clang++", "c++")))


def new_model(vocabulary: int, config: TrainConfig, attention: str) -> Any:
    """Return an untrained model."""
    torch.manual_seed(config.seed)
    shape = hf.LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=config.hidden,
        intermediate_size=config.mlp,
        num_hidden_layers=config.layers,
        num_attention_heads=config.heads,
        num_key_value_heads=config.heads,
        max_position_embeddings=config.positions,
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=2,
    )
    return hf.AutoModelForCausalLM.from_config(shape, attn_implementation=attention)  # type: ignore[no-untyped-call]


def train(
    model: Any,
    data: NDArray[np.uint16],
    budget: int,
    config: TrainConfig,
    plan: Plan,
    checkpoint: Path,
    resume: bool,
) -> dict[str, Any]:
    """Train the model in place up to a number of tokens.

    Args:
        model: the model.
        data: training tokens.
        budget: tokens to train on.
        config: training settings.
        plan: number format and kernels.
        checkpoint: path of the checkpoint.
        resume: continue from the checkpoint.

    Returns:
        "tokens", "seconds", and "losses" of all steps.
    """
    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and "embed" not in name]
    others = [p for name, p in model.named_parameters() if p.ndim != 2 or "embed" in name]
    muon = Muon(matrices, config.muon_rate, torch.bfloat16 if plan.bf16 else torch.float32)
    adam = torch.optim.AdamW(others, lr=config.adam_rate, betas=(0.9, 0.95), weight_decay=0.0)
    losses: list[float] = []
    tokens, seconds = 0, 0.0
    if resume:
        saved = torch.load(checkpoint, weights_only=True, map_location=plan.device)
        for name, part in (("model", model), ("muon", muon), ("adam", adam)):
            part.load_state_dict(saved[name])
        tokens, seconds, losses = (
            saved["progress"][name] for name in ("tokens", "seconds", "losses")
        )

    def loss_of(inputs: Tensor, targets: Tensor) -> Tensor:
        return functional.cross_entropy(
            model(input_ids=inputs).logits.flatten(0, 1).float(), targets.flatten()
        )

    objective = torch.compile(loss_of, dynamic=False) if plan.compiled else loss_of
    started, saved_at, reported_at, reported = (
        time.monotonic() - seconds,
        time.monotonic(),
        time.monotonic(),
        tokens,
    )
    while tokens < budget:
        fall = (budget - tokens) / (config.decay_share * budget)  # below 1 in the decay
        share = min(1.0, (tokens + 1) / config.warmup_tokens, fall)
        long = fall < 1 and tokens // config.batch_tokens % config.long_every == 0
        inputs, targets = batch(data, tokens, config.long_window if long else config.window, config)
        with torch.autocast(plan.device, dtype=torch.bfloat16, enabled=plan.bf16):
            loss = objective(inputs.to(plan.device), targets.to(plan.device))
        torch.autograd.backward(loss)
        nn.utils.clip_grad_norm_(model.parameters(), config.clip)
        for optimizer, rate in ((muon, config.muon_rate), (adam, config.adam_rate)):
            optimizer.param_groups[0]["lr"] = rate * share
            optimizer.step()
            optimizer.zero_grad()
        losses.append(round(float(loss.detach()), 4))
        tokens += config.batch_tokens
        now = time.monotonic()
        if len(losses) % config.report_steps == 0 or tokens >= budget:
            speed = (tokens - reported) / (now - reported_at)
            recent = float(np.mean(losses[-config.report_steps :]))
            print(
                f"{tokens:>12,} tokens  loss {recent:.4f}  {speed:,.0f} tokens/s  rate {share:.2f}",
                flush=True,
            )
            reported_at, reported = now, tokens
        if now - saved_at > config.checkpoint_seconds or tokens >= budget:
            states = {
                "model": model.state_dict(),
                "muon": muon.state_dict(),
                "adam": adam.state_dict(),
            }
            progress = {"tokens": tokens, "seconds": now - started, "losses": losses}
            torch.save({**states, "progress": progress}, checkpoint.with_suffix(".partial"))
            # An interrupted save leaves the previous checkpoint intact.
            checkpoint.with_suffix(".partial").replace(checkpoint)
            saved_at = now
    return {"tokens": tokens, "seconds": time.monotonic() - started, "losses": losses}


class Muon(torch.optim.Optimizer):
    """Momentum with orthogonalised matrices (Jordan et al., 2024).

    torch.optim.Muon always multiplies in bfloat16, which is slow on a CPU that emulates it, and one
    matrix at a time. Here the caller chooses the format, and matrices of one shape are batched.
    """

    def __init__(self, params: Iterable[nn.Parameter], rate: float, dtype: torch.dtype) -> None:
        super().__init__(params, {"lr": rate})
        self.dtype = dtype

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Take a step."""
        shapes: dict[torch.Size, list[nn.Parameter]] = {}
        for parameter in self.param_groups[0]["params"]:
            shapes.setdefault(parameter.shape, []).append(parameter)
        for shape, parameters in shapes.items():
            gradients = torch.stack([p.grad for p in parameters if p.grad is not None])
            momentum = self.state[parameters[0]].setdefault("momentum", torch.zeros_like(gradients))
            momentum.lerp_(gradients, 0.05)
            updates = orthogonal(gradients.lerp(momentum, 0.95).to(self.dtype))
            rate = self.param_groups[0]["lr"] * max(1.0, shape[0] / shape[1]) ** 0.5
            for parameter, update in zip(parameters, updates, strict=True):
                parameter.sub_(update.to(parameter.dtype), alpha=rate)


def orthogonal(matrices: Tensor) -> Tensor:
    """Return each matrix with its singular values brought near 1, by five Newton-Schulz steps."""
    wide = matrices.size(-2) <= matrices.size(-1)
    x: Tensor = matrices if wide else matrices.mT
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(5):
        square = x @ x.mT
        x = 3.4445 * x + (-4.7750 * square + 2.0315 * square @ square) @ x
    return x if wide else x.mT


def batch(
    data: NDArray[np.uint16], tokens: int, window: int, config: TrainConfig
) -> tuple[Tensor, Tensor]:
    """Return the next inputs and targets, after `tokens` tokens of training.

    Each pass over the data has its own order.
    """
    size = config.long_window
    first, chunks = tokens // size, (len(data) - 1) // size
    order = np.random.default_rng((config.seed, first // chunks)).permutation(chunks)
    starts = order[np.arange(first, first + config.batch_tokens // size) % chunks] * size
    rows = torch.from_numpy(data[starts[:, None] + np.arange(size + 1)].astype(np.int64))
    return rows[:, :-1].reshape(-1, window), rows[:, 1:].reshape(-1, window)
