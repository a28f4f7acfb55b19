import math

import pytest
import torch

from actors.logprobs import token_logprobs


def naive(hidden, weight, targets, temperature, bias=None):
    logits = torch.nn.functional.linear(hidden, weight, bias) / temperature
    distribution = torch.distributions.Categorical(logits=logits)
    return distribution.log_prob(targets), distribution.entropy()


def test_two_equal_logits_give_half_at_every_temperature():
    for temperature in (0.5, 1.0, 3.0):
        logprobs, entropies = token_logprobs(torch.ones(1, 2), torch.ones(2, 2), torch.tensor([1]), temperature)
        assert logprobs.item() == pytest.approx(-math.log(2))
        assert entropies.item() == pytest.approx(math.log(2))


def test_temperature_divides_the_logits():
    # Logits 2 and 0 at temperature 2 are 1 and 0: p = e / (e + 1).
    logprobs, _ = token_logprobs(torch.eye(2)[:1], torch.tensor([[2.0, 0.0], [0.0, 0.0]]), torch.tensor([0]), 2.0)
    assert logprobs.item() == pytest.approx(math.log(math.e / (math.e + 1)))


@pytest.mark.parametrize("chunk_logits", [1, 33, 1 << 24])
@pytest.mark.parametrize("with_bias", [False, True])
def test_values_and_gradients_are_those_of_the_whole_logits(chunk_logits, with_bias):
    torch.manual_seed(0)
    hidden, weight = torch.randn(7, 5, dtype=torch.float64), torch.randn(11, 5, dtype=torch.float64)
    bias = torch.randn(11, dtype=torch.float64) if with_bias else None
    targets, coefficients = torch.randint(11, (7,)), torch.randn(7)
    ours, theirs = hidden.clone().requires_grad_(), hidden.clone().requires_grad_()
    logprobs, entropies = token_logprobs(ours, weight, targets, 0.7, lm_head_bias=bias, chunk_logits=chunk_logits)
    expected_logprobs, expected_entropies = naive(theirs, weight, targets, 0.7, bias)
    torch.testing.assert_close(logprobs, expected_logprobs.float())
    torch.testing.assert_close(entropies, expected_entropies.float())
    (logprobs * coefficients).sum().backward()
    (expected_logprobs * coefficients).sum().backward()
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("chunk_logits", [1, 33, 1 << 24])
@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("use", ["entropies", "both"])
def test_entropy_gradients_are_those_of_the_whole_logits(chunk_logits, with_bias, use):
    torch.manual_seed(0)
    hidden, weight = torch.randn(7, 5, dtype=torch.float64), torch.randn(11, 5, dtype=torch.float64)
    bias = torch.randn(11, dtype=torch.float64) if with_bias else None
    targets, (a, b) = torch.randint(11, (7,)), torch.randn(2, 7)
    ours, theirs = hidden.clone().requires_grad_(), hidden.clone().requires_grad_()
    logprobs, entropies = token_logprobs(
        ours, weight, targets, 0.7, lm_head_bias=bias, chunk_logits=chunk_logits, entropy_gradient=True
    )
    expected_logprobs, expected_entropies = naive(theirs, weight, targets, 0.7, bias)
    torch.testing.assert_close(logprobs, expected_logprobs.float())
    torch.testing.assert_close(entropies, expected_entropies.float())
    ours_sum, theirs_sum = (a * entropies).sum(), (a * expected_entropies).sum()
    if use == "both":
        ours_sum, theirs_sum = ours_sum + (b * logprobs).sum(), theirs_sum + (b * expected_logprobs).sum()
    ours_sum.backward()
    theirs_sum.backward()
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-5, atol=1e-6)


def test_the_entropy_gradient_of_two_logits_by_hand():
    # Logits h = (ln 3, 0): p = (3/4, 1/4), H = 2 ln 2 - 3/4 ln 3; dH/dh_0 = -p_0 (ln p_0 + H) = -3/16 ln 3 = -dH/dh_1.
    hidden = torch.tensor([[math.log(3), 0.0]], requires_grad=True)
    _, entropies = token_logprobs(hidden, torch.eye(2), torch.tensor([0]), 1.0, entropy_gradient=True)
    entropies.sum().backward()
    assert entropies.item() == pytest.approx(2 * math.log(2) - 0.75 * math.log(3))
    assert hidden.grad.tolist()[0] == pytest.approx([-3 / 16 * math.log(3), 3 / 16 * math.log(3)])


def test_entropies_carry_a_gradient_on_request_only():
    hidden, weight, targets = torch.randn(3, 4, requires_grad=True), torch.randn(9, 4), torch.tensor([0, 1, 2])
    assert [token_logprobs(hidden, weight, targets, 1.0)[i].requires_grad for i in (0, 1)] == [True, False]
    assert token_logprobs(hidden, weight, targets, 1.0, entropy_gradient=True)[1].requires_grad
    with torch.no_grad():
        assert not token_logprobs(hidden, weight, targets, 1.0, entropy_gradient=True)[1].requires_grad


def test_a_certain_distribution_has_no_entropy_and_a_finite_gradient():
    hidden = torch.tensor([[1000.0, 0.0]], requires_grad=True)
    _, entropies = token_logprobs(hidden, torch.eye(2), torch.tensor([0]), 1.0, entropy_gradient=True)
    entropies.sum().backward()
    assert entropies.item() == 0
    assert hidden.grad.tolist() == [[0.0, 0.0]]


@pytest.mark.parametrize("entropy_gradient", [False, True])
def test_no_tokens_give_empty_results_and_a_zero_gradient(entropy_gradient):
    hidden, targets = torch.randn(0, 4, requires_grad=True), torch.empty(0, dtype=torch.int64)
    logprobs, entropies = token_logprobs(hidden, torch.randn(9, 4), targets, 1.0, entropy_gradient=entropy_gradient)
    (logprobs + entropies).sum().backward()
    assert logprobs.shape == entropies.shape == (0,)
    assert hidden.grad.shape == (0, 4)


def test_a_head_that_is_trained_or_a_temperature_of_zero_is_refused():
    hidden, targets = torch.randn(1, 4), torch.tensor([0])
    with pytest.raises(ValueError, match="frozen"):
        token_logprobs(hidden, torch.randn(9, 4, requires_grad=True), targets, 1.0)
    with pytest.raises(ValueError, match="temperature"):
        token_logprobs(hidden, torch.randn(9, 4), targets, 0.0)
