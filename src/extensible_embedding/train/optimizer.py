"""The optimizer and its schedule, and how both take the configuration's rates when a run goes on.

In: an embedder and a `TrainConfig`. Out: AdamW over its weights, with a rate of its own for the
projection. Knows nothing of data and losses.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR

from ..checkpoint import own_weights
from ..embedder import ExtensibleEmbedder
from .config import TrainConfig
from .deadline import Deadline


def make_optimizer(embedder: ExtensibleEmbedder, config: TrainConfig) -> torch.optim.Optimizer:
    """AdamW over the embedder's weights; vectors are not decayed."""
    return torch.optim.AdamW(_groups(embedder, config), betas=(0.9, 0.98), fused=True)


def make_schedule(
    optimizer: torch.optim.Optimizer, config: TrainConfig, deadline: Deadline
) -> LambdaLR:
    """The rates of `rate_at`, step by step."""
    return LambdaLR(optimizer, lambda step: rate_at(step, config, deadline.share))


def rate_at(step: int, config: TrainConfig, time_share: float = 0.0) -> float:
    """Share of the learning rate: linear warm-up, constant, linear decay at the end.

    Args:
        step: that is to come.
        config: of the run.
        time_share: of the run's time, that has passed: it counts as so much of the steps.
    """
    warm = min(1.0, (step + 1) / max(1, config.warmup_steps))
    passed = max(float(step), time_share * config.max_steps)
    left = (config.max_steps - passed) / max(1, config.decay_steps)
    return warm * min(1.0, max(0.0, left)) if config.decay_steps else warm


def set_rates(
    optimizer: torch.optim.Optimizer,
    schedule: LambdaLR,
    embedder: ExtensibleEmbedder,
    config: TrainConfig,
    deadline: Deadline,
) -> None:
    """Puts the configuration's rates and decay over those that a checkpoint brought along."""
    wanted = _groups(embedder, config)
    for group, new in zip(optimizer.param_groups, wanted, strict=True):
        group["initial_lr"], group["weight_decay"] = new["lr"], new["weight_decay"]
        group["lr"] = new["lr"] * rate_at(schedule.last_epoch, config, deadline.share)
    schedule.base_lrs = [group["lr"] for group in wanted]
    schedule._last_lr = [group["lr"] for group in optimizer.param_groups]


def _groups(embedder: ExtensibleEmbedder, config: TrainConfig) -> list[dict[str, Any]]:
    """The optimizer's groups that hold weights: the projection, matrices, vectors."""
    weights = {name: w for name, w in own_weights(embedder).items() if w.requires_grad}
    groups = [
        {
            "params": [w for name, w in weights.items() if select(name, w)],
            "lr": rate,
            "weight_decay": decay,
        }
        for select, rate, decay in (
            (_is_projection, config.projection_learning_rate, config.weight_decay),
            (_is_matrix, config.learning_rate, config.weight_decay),
            (_is_vector, config.learning_rate, 0.0),
        )
    ]
    return [group for group in groups if group["params"]]


def _is_projection(name: str, weight: Tensor) -> bool:
    return name.startswith("projection")


def _is_matrix(name: str, weight: Tensor) -> bool:
    return weight.ndim > 1 and not _is_projection(name, weight)


def _is_vector(name: str, weight: Tensor) -> bool:
    return weight.ndim <= 1 and not _is_projection(name, weight)
