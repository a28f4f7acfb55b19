"""Top-k and top-p from candidates keep what a full sort keeps, and vLLM's sampler draws the same tokens with them."""

import math

import pytest
import torch
from vllm.platforms import current_platform
from vllm.v1.sample.ops import topk_topp_sampler

from actors import cpu_lora, cpu_sampling
from actors.cpu_sampling import keep_top_k_top_p
from actors.patches import find_problem, is_patched

pytestmark = pytest.mark.integration

INF = math.inf


def refuse(logits, k, p):
    raise AssertionError(f"{len(logits)} rows were sorted")


class CountingSort:
    """A naive full sort in float64, and the rows it was given."""

    def __init__(self):
        self.num_rows = 0

    def __call__(self, logits, k, p):
        self.num_rows += len(logits)
        limits = [None] * len(logits) if k is None else k.tolist()
        return torch.stack([sort_row(*row) for row in zip(logits, limits, p.tolist(), strict=True)])


def sort_row(row, k, p):
    """One row `[V]`: tokens from the largest on until they hold p; ties of the k-th stay, the first ids of others do."""
    kept = row.clone()
    if k is not None:
        kept[row < row.sort(descending=True).values[k - 1]] = -INF
    shares = kept.double().softmax(0)
    held = 0.0
    for token_id in kept.argsort(descending=True, stable=True).tolist():
        if held >= p:
            kept[token_id] = -INF
        held += shares[token_id].item()
    return kept


def logits_of(*probabilities):
    return torch.tensor(probabilities, dtype=torch.float64).log().float()


def make_logits(num_rows, num_tokens, scale, has_ties):
    generator = torch.Generator().manual_seed(num_tokens)
    logits = torch.randn(num_rows, num_tokens, generator=generator) * scale
    return logits.bfloat16().float() if has_ties else logits


def test_a_worked_example():
    logits = logits_of([0.2, 0.5, 0.3], [0.2, 0.5, 0.3], [0.2, 0.5, 0.3])
    kept = keep_top_k_top_p(logits.clone(), None, torch.tensor([0.7, 0.45, 0.85]), refuse)
    assert kept.isfinite().tolist() == [[False, True, True], [False, True, False], [True, True, True]]
    assert torch.equal(kept[kept.isfinite()], logits[kept.isfinite()])


def test_top_k_comes_before_top_p():
    # Of 0.5 and 0.3 the first has 0.625: enough for 0.6, where it would not be of the whole.
    logits = logits_of([0.2, 0.5, 0.3])
    kept = keep_top_k_top_p(logits, torch.tensor([2], dtype=torch.int32), torch.tensor([0.6]), refuse)
    assert kept.isfinite().tolist() == [[False, True, False]]


@pytest.mark.parametrize("candidates", [(4,), (8, 64), (512, 4096)])
@pytest.mark.parametrize("has_ties", [False, True])
@pytest.mark.parametrize(("num_tokens", "scale"), [(3, 1.0), (40, 2.0), (3000, 0.01), (3000, 4.0)])
def test_as_many_tokens_are_kept_as_by_vllm_and_by_a_naive_sort(candidates, has_ties, num_tokens, scale):
    p = torch.tensor([1e-6, 0.1, 0.5, 0.7, 0.9, 0.95, 0.99, 0.9999, 1.0])
    some = [1, 2, 5, 30, 200, num_tokens, 7, num_tokens, 3]
    logits = make_logits(len(p), num_tokens, scale, has_ties)
    # As after min-p.
    logits[:, ::5] = -INF
    for k in (None, torch.tensor(some, dtype=torch.int32).clamp(max=num_tokens)):
        kept = keep_top_k_top_p(logits.clone(), k, p, CountingSort(), candidates)
        stays = kept.isfinite()
        assert torch.equal(kept[stays], logits[stays])
        expected = original()(logits.clone(), k, p, True)
        naive = CountingSort()(logits, k, p)
        # Which of several equal logits is kept is open, their number is not.
        assert torch.equal(kept.sort(-1).values, expected.sort(-1).values)
        assert torch.equal(kept.sort(-1).values, naive.sort(-1).values)


def original():
    function = topk_topp_sampler.apply_top_k_top_p_pytorch
    return getattr(function, "terse_original", function)


def test_ties_of_the_kth_are_all_kept_and_those_at_the_cut_of_top_p_are_counted():
    logits = torch.tensor([[3.0, 1.0, 2.0, 2.0, 2.0, 0.0]])
    kept = keep_top_k_top_p(logits.clone(), torch.tensor([2]), torch.tensor([1.0]), refuse)
    assert kept.tolist() == [[3.0, -INF, 2.0, 2.0, 2.0, -INF]]
    # e^3 : 3 e^2 are 0.475 and 0.175 each: two of the three are needed for 0.8.
    kept = keep_top_k_top_p(logits.clone(), torch.tensor([2]), torch.tensor([0.8]), refuse)
    assert sorted(kept[kept.isfinite()].tolist()) == [2.0, 2.0, 3.0]


def test_ties_of_the_kth_beyond_the_candidates_are_sorted():
    logits = torch.tensor([[3.0, 2.0, 2.0, 2.0, 2.0, 0.0]])
    sort = CountingSort()
    kept = keep_top_k_top_p(logits, torch.tensor([2]), torch.tensor([1.0]), sort, num_candidates=(4,))
    assert sort.num_rows == 1
    assert kept.tolist() == [[3.0, 2.0, 2.0, 2.0, 2.0, -INF]]


def test_rows_with_neither_stay_as_they_are():
    logits = make_logits(3, 50, 1.0, has_ties=False)
    for k in (None, torch.tensor([50, 50, 4])):
        kept = keep_top_k_top_p(logits.clone(), k, torch.tensor([1.0, 1.0, 0.5]), refuse)
        assert torch.equal(kept[:2], logits[:2])
        assert kept[2].isinf().any()


def test_only_rows_that_candidates_do_not_settle_are_sorted():
    logits = torch.zeros(4, 2000)
    logits[:, 0] = torch.tensor([20.0, 0.0, 20.0, 0.0])  # two are sure of a token, two are flat
    sort = CountingSort()
    kept = keep_top_k_top_p(logits, None, torch.tensor([0.9, 0.9, 0.9, 1e-4]), sort, num_candidates=(8, 64))
    assert sort.num_rows == 1
    assert kept.isfinite().sum(-1).tolist() == [1, 1800, 1, 1]


def test_a_cut_too_close_to_call_is_left_to_the_sort():
    sort = CountingSort()
    keep_top_k_top_p(logits_of([0.25, 0.5, 0.25]), None, torch.tensor([0.5]), sort)
    assert sort.num_rows == 1
    keep_top_k_top_p(logits_of([0.25, 0.5, 0.25]), None, torch.tensor([0.501]), sort)
    assert sort.num_rows == 1


@pytest.mark.parametrize("value", [-INF, INF, math.nan])
def test_rows_without_a_distribution_are_left_to_vllm(value):
    logits = make_logits(2, 30, 1.0, has_ties=False)
    logits[0] = value
    seen = []

    def sort(rows, k, p):
        seen.append(rows.clone())
        return rows

    kept = keep_top_k_top_p(logits, torch.tensor([5, 5]), torch.tensor([0.9, 0.9]), sort)
    assert [rows.shape for rows in seen] == [(1, 30)]
    assert torch.equal(seen[0], torch.full((1, 30), value)) or math.isnan(value)
    assert 1 <= kept[1].isfinite().sum() <= 5


def test_one_finite_logit_is_kept():
    logits = torch.full((1, 30), -INF)
    logits[0, 7] = -3.0
    kept = keep_top_k_top_p(logits, None, torch.tensor([0.5]), refuse)
    assert kept.isfinite().nonzero().tolist() == [[0, 7]]


def test_a_row_does_not_depend_on_the_others():
    logits = make_logits(6, 3000, 2.0, has_ties=True)
    p = torch.tensor([0.1, 0.5, 0.8, 0.95, 0.99, 0.3])
    together = keep_top_k_top_p(logits.clone(), None, p, CountingSort(), (16, 256))
    for row in range(6):
        alone = keep_top_k_top_p(logits[row : row + 1].clone(), None, p[row : row + 1], CountingSort(), (16, 256))
        assert torch.equal(alone[0], together[row])


def test_the_patched_function_is_the_one_that_was_read():
    assert find_problem(cpu_sampling.PATCHES) is None


def test_the_plugin_of_cpu_engines_registers_it():
    cpu_lora.register()
    assert all(is_patched(patch) for patch in cpu_sampling.PATCHES)


def test_a_seeded_sampler_draws_the_same_tokens_with_the_same_logprobs(monkeypatch):
    current_platform.import_kernels()  # the sampler draws with vLLM's own operators
    cpu_sampling.register()
    patched = topk_topp_sampler.apply_top_k_top_p_pytorch
    sampler = topk_topp_sampler.TopKTopPSampler(logprobs_mode="processed_logprobs")
    logits = make_logits(16, 3000, 3.0, has_ties=False)
    p = torch.linspace(0.05, 1.0, 16)
    for k in (None, torch.full((16,), 40, dtype=torch.int32)):
        drawn = []
        for function in (patched, original()):
            monkeypatch.setattr(topk_topp_sampler, "apply_top_k_top_p_pytorch", function)
            generators = {row: torch.Generator().manual_seed(row) for row in range(16)}
            drawn.append(sampler(logits.clone(), generators, k, p))
        (token_ids, logprobs), (expected_ids, expected_logprobs) = drawn
        assert torch.equal(token_ids, expected_ids)
        assert torch.equal(logprobs, expected_logprobs)
