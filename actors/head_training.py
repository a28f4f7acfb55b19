"""Training of the heads on features that engines gave: small torch modules in, numpy heads out.

Binary cross-entropy, AdamW, validation on tasks that training never saw; the epoch with the lowest validation loss
is kept. Features are standardised with the training part's mean and scale. The switcher has dropout behind its hidden
layer and Gaussian noise on its standardised input while it trains, against overfitting and for robustness to
quantised states (arXiv 2603.16867, switcher).
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from actors.heads import HIDDEN_UNITS, Switcher, Verifier
from configs.schema.heads import HeadsSection

ROWS_PER_STEP = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """How a training went."""

    best_epoch: int
    """Counted from 1; 0 when no epoch was better than no training."""
    train_losses: tuple[float, ...]
    """Mean BCE per epoch, in nats"""
    validation_losses: tuple[float, ...]


def split_by_task(task_ids: Sequence[str], validation_frac: float, seed: int) -> np.ndarray:
    """Which rows `[N]` are for validation: all rows of a task, or none. At least one task on either side.

    Raises ValueError for fewer than two tasks.
    """
    distinct = sorted(set(task_ids))
    if len(distinct) < 2:
        raise ValueError(f"expected at least 2 tasks to split, got {len(distinct)}")
    order = np.random.default_rng(seed).permutation(len(distinct))
    num_held_out = min(max(1, round(validation_frac * len(distinct))), len(distinct) - 1)
    held_out = {distinct[place] for place in order[:num_held_out]}
    return np.array([task_id in held_out for task_id in task_ids])


def fit_switcher(
    features: np.ndarray, labels: np.ndarray, is_validation: np.ndarray, config: HeadsSection, seed: int
) -> tuple[Switcher, Fit]:
    """On pooled prompt states `[N, H]` with labels `[N]` (1: needs reasoning). The same for the same seed."""
    torch.manual_seed(seed)
    mean, scale = _standardisation(features[~is_validation])
    hidden, output = nn.Linear(features.shape[1], HIDDEN_UNITS), nn.Linear(HIDDEN_UNITS, 1)
    module = nn.Sequential(
        _Noise(config.switcher_noise), hidden, nn.ReLU(), nn.Dropout(config.switcher_dropout), output
    )
    fit = _train(module, (features - mean) / scale, labels, is_validation, config)
    return Switcher(
        feature_mean=mean,
        feature_scale=scale,
        hidden_weight=_array(hidden.weight),
        hidden_bias=_array(hidden.bias),
        output_weight=_array(output.weight),
        output_bias=_array(output.bias),
    ), fit


def fit_verifier(
    features: np.ndarray, labels: np.ndarray, is_validation: np.ndarray, config: HeadsSection, seed: int
) -> tuple[Verifier, Fit]:
    """On last-token states `[N, H]` with labels `[N]` (1: the completion is right). The same for the same seed."""
    torch.manual_seed(seed)
    mean, scale = _standardisation(features[~is_validation])
    linear = nn.Linear(features.shape[1], 1)
    fit = _train(linear, (features - mean) / scale, labels, is_validation, config)
    return Verifier(feature_mean=mean, feature_scale=scale, weight=_array(linear.weight), bias=_array(linear.bias)), fit


class _Noise(nn.Module):
    """N(0, std²) added in training."""

    def __init__(self, std: float) -> None:
        super().__init__()
        self._std = std

    def forward(self, x: Tensor) -> Tensor:
        return x + self._std * torch.randn_like(x) if self.training else x


def _train(
    module: nn.Module, features: np.ndarray, labels: np.ndarray, is_validation: np.ndarray, config: HeadsSection
) -> Fit:
    x, y = torch.from_numpy(features).float(), torch.from_numpy(labels).float()
    held_out = torch.from_numpy(is_validation)
    x_train, y_train, x_held_out, y_held_out = x[~held_out], y[~held_out], x[held_out], y[held_out]
    optimizer = torch.optim.AdamW(module.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay)
    loss_of = nn.BCEWithLogitsLoss()

    def validation_loss() -> float:
        module.eval()
        with torch.no_grad():
            return loss_of(module(x_held_out)[:, 0], y_held_out).item()

    best_loss, best_epoch, best_state = validation_loss(), 0, copy.deepcopy(module.state_dict())
    train_losses, validation_losses = [], []
    for epoch in range(1, config.num_epochs + 1):
        module.train()
        total = 0.0
        for rows in torch.randperm(len(x_train)).split(ROWS_PER_STEP):
            loss = loss_of(module(x_train[rows])[:, 0], y_train[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.item() * len(rows)
        train_losses.append(total / len(x_train))
        validation_losses.append(validation_loss())
        if validation_losses[-1] < best_loss:
            best_loss, best_epoch, best_state = validation_losses[-1], epoch, copy.deepcopy(module.state_dict())
    module.load_state_dict(best_state)
    module.eval()
    return Fit(best_epoch=best_epoch, train_losses=tuple(train_losses), validation_losses=tuple(validation_losses))


def _standardisation(features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and scale `[H]`, float32; features that never change get scale 1."""
    mean, scale = features.mean(axis=0), features.std(axis=0)
    return mean.astype(np.float32), np.where(scale > 1e-6, scale, 1.0).astype(np.float32)


def _array(parameter: Tensor) -> np.ndarray:
    return parameter.detach().numpy().copy()
