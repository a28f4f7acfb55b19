"""How good a head's scores are, and where to put the switcher's threshold."""

import numpy as np
from sklearn.metrics import brier_score_loss, roc_auc_score

NUM_BINS = 10


def auc(scores: np.ndarray, labels: np.ndarray) -> float:
    """Probability that a positive scores above a negative, ties half (Mann and Whitney 1947); inputs `[N]`.

    0.5 when there is no such pair: nothing can be told apart. Example: scores `[1, 2, 3]`, labels `[0, 0, 1]` → 1.
    """
    return float(roc_auc_score(labels, scores)) if len(np.unique(labels)) == 2 else 0.5


def brier(scores: np.ndarray, labels: np.ndarray) -> float:
    """Mean squared difference of probability and truth; 0.25 for a head that always says one half."""
    return float(brier_score_loss(labels, scores, pos_label=1))


def calibration(scores: np.ndarray, labels: np.ndarray, num_bins: int = NUM_BINS) -> list[tuple[float, float, int]]:
    """(mean score, share of positives, count) of each bin of equal width that has scores."""
    bins = np.minimum((scores * num_bins).astype(int), num_bins - 1)
    return [
        (float(scores[inside].mean()), float(labels[inside].mean()), int(inside.sum()))
        for inside in (bins == number for number in range(num_bins))
        if inside.any()
    ]


def calibration_error(scores: np.ndarray, labels: np.ndarray, num_bins: int = NUM_BINS) -> float:
    """Expected calibration error (Naeini et al. 2015): |mean score - share of positives|, weighted by bin counts."""
    found = calibration(scores, labels, num_bins)
    return sum(abs(score - share) * count for score, share, count in found) / len(scores)


def head_metrics(scores: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """`auc`, `calibration_error`, `brier`, the share of positives and how many there were."""
    return {
        "auc": auc(scores, labels),
        "calibration_error": calibration_error(scores, labels),
        "brier": brier(scores, labels),
        "positive_frac": float(labels.mean()),
        "num_rows": float(len(labels)),
    }


def thresholds(scores: np.ndarray) -> np.ndarray:
    """Every threshold that routes another set of prompts, from all of them to none: `[number of distinct + 1]`.

    Between two neighbours stands the middle: `[0.2, 0.6]` → 0 (both), 0.4 (one), 1 or above (none).
    """
    distinct = np.unique(scores)
    middles = (distinct[1:] + distinct[:-1]) / 2
    return np.concatenate([[0.0], middles, [max(1.0, float(np.nextafter(distinct[-1], np.inf)))]])


def threshold_for_share(scores: np.ndarray, share: float) -> float:
    """The threshold that routes as near as can be to `share` of the prompts to reasoning; of two, the one that
    routes fewer."""
    candidates = thresholds(scores)
    gaps = [abs(float(np.mean(scores >= threshold)) - share) for threshold in candidates]
    return float(max(threshold for threshold, gap in zip(candidates, gaps, strict=True) if gap <= min(gaps) + 1e-9))


def threshold_for_accuracy(
    scores: np.ndarray, base_accuracy: np.ndarray, reasoning_accuracy: np.ndarray, max_loss: float
) -> float:
    """The highest threshold, so the fewest prompts routed to reasoning, at which the mean accuracy is at most
    `max_loss` below that of reasoning alone. All inputs `[N]`, accuracies per task."""
    wanted = float(reasoning_accuracy.mean()) - max_loss
    return float(
        max(
            threshold
            for threshold in thresholds(scores)
            if threshold == 0.0
            or np.where(scores >= threshold, reasoning_accuracy, base_accuracy).mean() >= wanted - 1e-9
        )
    )
