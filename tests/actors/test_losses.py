import math

import pytest
import torch

from actors.losses import kl_penalty, policy_gradient_loss, sft_loss

SETTINGS = {"clip_low": 0.2, "clip_high": 0.2, "importance_cap": 2.0, "kl_beta": 0.0, "kl_estimator": "k3"}


def loss_of(ratios, advantages, reference_logprobs=None, num_loss_tokens=None, **settings):
    policy = torch.tensor([math.log(r) - 1.0 for r in ratios], dtype=torch.float64, requires_grad=True)
    loss, metrics = policy_gradient_loss(
        policy_logprobs=policy,
        behaviour_logprobs=torch.full_like(policy, -1.0).detach(),
        advantages=torch.tensor(advantages, dtype=torch.float64),
        reference_logprobs=reference_logprobs,
        num_loss_tokens=num_loss_tokens or len(ratios),
        **(SETTINGS | settings),
    )
    loss.backward()
    return loss.item(), policy.grad.tolist(), metrics


def test_sft_loss_is_the_mean_over_all_ranks_tokens():
    assert sft_loss(torch.tensor([-1.0, -3.0]), 2).item() == 2.0
    assert sft_loss(torch.tensor([-1.0, -3.0]), 4).item() == 1.0


def test_docstring_example():
    loss, gradient, metrics = loss_of([1.0, 1.5, 3.0], [1.0, 1.0, -1.0])
    assert loss == pytest.approx((-1.0 - 1.2 + 2.0) / 3)
    assert gradient == pytest.approx([-1 / 3, 0.0, 0.0])
    assert metrics["clipped"].item() == 1
    assert metrics["ratio"].item() == pytest.approx(1.0 + 1.5 + 2.0)
    assert metrics["gap"].item() == pytest.approx(math.log(1.5) + math.log(3))
    assert metrics["gap_max"].item() == pytest.approx(math.log(3))


@pytest.mark.parametrize(
    ("ratio", "advantage", "term", "gradient"),
    [
        (1.1, 2.0, -2.2, -2.2),  # inside the clip: -r A, d/d log r = -r A
        (1.3, 2.0, -2.4, 0.0),  # too likely already: clipped at 1.2
        (0.5, 2.0, -1.0, -1.0),  # less likely than before, and good: pulled back up
        (0.7, -1.0, 0.8, 0.0),  # unlikely enough already: clipped at 0.8
        (1.5, -1.0, 1.5, 1.5),  # likelier and bad: pushed down
        (5.0, -1.0, 2.0, 0.0),  # past the cap
    ],
)
def test_clipped_surrogate_and_its_gradient_by_hand(ratio, advantage, term, gradient):
    loss, (got,), _ = loss_of([ratio], [advantage])
    assert loss == pytest.approx(term)
    assert got == pytest.approx(gradient)


def test_a_huge_ratio_gives_finite_loss_and_gradient():
    policy = torch.tensor([0.0], requires_grad=True)
    loss, _ = policy_gradient_loss(
        policy_logprobs=policy,
        behaviour_logprobs=torch.tensor([-1000.0]),
        advantages=torch.tensor([-1.0]),
        reference_logprobs=None,
        num_loss_tokens=1,
        **SETTINGS,
    )
    loss.backward()
    assert loss.item() == pytest.approx(2.0)
    assert policy.grad.item() == 0.0


@pytest.mark.parametrize(("estimator", "value"), [("k1", 0.5), ("k2", 0.125), ("k3", math.exp(-0.5) - 0.5)])
def test_kl_estimators_by_hand(estimator, value):
    got = kl_penalty(torch.tensor([-1.0]), torch.tensor([-1.5]), estimator)
    assert got.item() == pytest.approx(value)


def test_k1_and_k3_average_to_the_kl_divergence():
    p, q = torch.tensor([0.7, 0.2, 0.1]).log(), torch.tensor([0.5, 0.25, 0.25]).log()
    divergence = torch.nn.functional.kl_div(q, p, log_target=True, reduction="sum").item()
    for estimator in ("k1", "k3"):
        assert (p.exp() * kl_penalty(p, q, estimator)).sum().item() == pytest.approx(divergence, abs=1e-6)


def test_kl_penalty_adds_beta_times_its_value_and_gradient():
    reference = torch.tensor([-1.5], dtype=torch.float64)
    loss, (gradient,), metrics = loss_of([1.0], [0.0], reference, kl_beta=0.1)
    assert loss == pytest.approx(0.1 * (math.exp(-0.5) - 0.5))
    assert gradient == pytest.approx(0.1 * (1 - math.exp(-0.5)))  # d k3 / d policy = 1 - exp(ref - policy)
    assert metrics["kl"].item() == pytest.approx(math.exp(-0.5) - 0.5)


def test_the_parts_of_a_sharded_step_add_up_to_the_whole():
    ratios, advantages = [0.5, 0.9, 1.1, 1.9, 4.0], [1.0, -1.0, 2.0, -0.5, -1.0]
    whole, gradient, _ = loss_of(ratios, advantages)
    first, first_gradient, _ = loss_of(ratios[:2], advantages[:2], num_loss_tokens=5)
    second, second_gradient, _ = loss_of(ratios[2:], advantages[2:], num_loss_tokens=5)
    assert first + second == pytest.approx(whole)
    assert first_gradient + second_gradient == pytest.approx(gradient)


def test_kl_without_reference_logprobs_or_with_an_unknown_estimator_is_refused():
    with pytest.raises(ValueError, match="reference"):
        loss_of([1.0], [1.0], kl_beta=0.1)
    with pytest.raises(ValueError, match="k9"):
        kl_penalty(torch.zeros(1), torch.zeros(1), "k9")
