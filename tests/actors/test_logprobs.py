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


def test_no_tokens_give_empty_results_and_a_zero_gradient():
    hidden = torch.randn(0, 4, requires_grad=True)
    logprobs, entropies = token_logprobs(hidden, torch.randn(9, 4), torch.empty(0, dtype=torch.int64), 1.0)
    logprobs.sum().backward()
    assert logprobs.shape == entropies.shape == (0,)
    assert hidden.grad.shape == (0, 4)


def test_a_head_that_is_trained_or_a_temperature_of_zero_is_refused():
    hidden, targets = torch.randn(1, 4), torch.tensor([0])
    with pytest.raises(ValueError, match="frozen"):
        token_logprobs(hidden, torch.randn(9, 4, requires_grad=True), targets, 1.0)
    with pytest.raises(ValueError, match="temperature"):
        token_logprobs(hidden, torch.randn(9, 4), targets, 0.0)
