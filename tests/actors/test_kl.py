import math

import numpy as np
import pytest
import torch

from actors.kl import kl_penalty, next_kl_beta, sequence_kl


@pytest.mark.parametrize(("estimator", "value"), [("k1", 0.5), ("k2", 0.125), ("k3", math.exp(-0.5) - 0.5)])
def test_kl_estimators_by_hand(estimator, value):
    got = kl_penalty(torch.tensor([-1.0]), torch.tensor([-1.5]), estimator)
    assert got.item() == pytest.approx(value)


@pytest.mark.parametrize(("estimator", "slope"), [("k1", 1.0), ("k2", 0.5), ("k3", 1 - math.exp(-0.5))])
def test_gradients_of_the_kl_estimators_by_hand(estimator, slope):
    policy = torch.tensor([-1.0], requires_grad=True)
    kl_penalty(policy, torch.tensor([-1.5]), estimator).sum().backward()
    assert policy.grad.item() == pytest.approx(slope)


def test_k1_and_k3_average_to_the_kl_divergence():
    p, q = torch.tensor([0.7, 0.2, 0.1]).log(), torch.tensor([0.5, 0.25, 0.25]).log()
    divergence = torch.nn.functional.kl_div(q, p, log_target=True, reduction="sum").item()
    for estimator in ("k1", "k3"):
        assert (p.exp() * kl_penalty(p, q, estimator)).sum().item() == pytest.approx(divergence, abs=1e-6)


def test_an_unknown_estimator_is_refused():
    with pytest.raises(ValueError, match="k9"):
        kl_penalty(torch.zeros(1), torch.zeros(1), "k9")


@pytest.mark.parametrize(
    ("estimator", "value"), [("k1", -0.5), ("k2", 0.625), ("k3", (math.exp(-0.5) - 0.5) + (math.e - 2))]
)
def test_sequence_kl_sums_over_the_tokens(estimator, value):
    behaviour, reference = np.array([-1.0, -2.0], dtype=np.float32), np.array([-1.5, -1.0], dtype=np.float32)
    assert sequence_kl(behaviour, reference, estimator) == pytest.approx(value)


def test_sequence_kl_of_no_tokens_is_zero_and_of_different_shapes_refused():
    assert sequence_kl(np.empty(0), np.empty(0), "k1") == 0
    with pytest.raises(ValueError, match=r"expected reference logprobs of shape \(1,\), got \(2,\)"):
        sequence_kl(np.zeros(1), np.zeros(2), "k1")


@pytest.mark.parametrize(
    ("measured", "gain", "factor"),
    [
        (0.011, 0.1, 1.01),  # error 0.1
        (0.01, 0.1, 1.0),
        (0.009, 0.5, 0.95),  # error -0.1
        (0.05, 0.1, 1.02),  # error 4, clipped to 0.2
        (0.0, 0.1, 0.98),  # error -1, clipped to -0.2
        (-0.3, 0.1, 0.98),  # k1 may be negative
        (0.05, 0.0, 1.0),
    ],
)
def test_kl_beta_moves_towards_the_target_by_hand(measured, gain, factor):
    assert next_kl_beta(0.001, measured, 0.01, gain) == pytest.approx(0.001 * factor)


def test_kl_beta_settles_where_the_kl_is_on_target():
    # A policy whose KL is 1e-5 / beta: on target 0.01 at beta 0.001.
    beta = 0.01
    for _ in range(500):
        beta = next_kl_beta(beta, 1e-5 / beta, 0.01)
    assert beta == pytest.approx(0.001, rel=1e-6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0.1, math.nan, 1.0), "measured_kl must be finite"),
        ((0.1, 1.0, 0.0), "target_kl must be above 0"),
        ((0.1, 1.0, 1.0, 5.0), "gain must be at least 0 and below 5"),
    ],
)
def test_a_controller_that_cannot_work_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        next_kl_beta(*arguments)
