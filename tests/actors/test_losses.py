import math
from dataclasses import replace

import pytest
import torch

from actors.losses import (
    LOSS_MEANS,
    LossInputs,
    LossSettings,
    Surrogate,
    masked_sequences,
    policy_gradient_loss,
    sft_loss,
    step_metrics,
)
from configs.built_ins import LOSSES

SETTINGS = LossSettings(
    name="grpo",
    args={},
    loss_mean="token",
    clip_low=0.2,
    clip_high=0.2,
    importance_cap=2.0,
    sequence_mask_gap=0.0,
    kl_beta=0.0,
    kl_estimator="k3",
    entropy_bonus=0.0,
    max_completion_tokens=10,
)
NAMES_AND_MEANS = [(name, mean) for name in LOSSES for mean in LOSS_MEANS]


def make_inputs(ratios, advantages, *, rows=None, reference=None, entropies=None, policy=0.0, **counts):
    """Tokens of one sequence with the same policy logprob; 0 keeps the ratios exact."""
    logprobs = torch.full((len(ratios),), policy, dtype=torch.float64, requires_grad=True)
    log_ratio = torch.tensor([math.log(r) for r in ratios], dtype=torch.float64)
    rows = [0] * len(ratios) if rows is None else rows
    return LossInputs(
        policy_logprobs=logprobs,
        behaviour_logprobs=logprobs.detach() - log_ratio,
        reference_logprobs=None if reference is None else torch.tensor(reference, dtype=torch.float64),
        advantages=torch.tensor(advantages, dtype=torch.float64),
        entropies=torch.tensor(entropies or [0.0] * len(ratios), dtype=torch.float64, requires_grad=True),
        rows=torch.tensor(rows, dtype=torch.int64),
        **({"num_loss_tokens": len(ratios) or 1, "num_sequences": len(set(rows)) or 1} | counts),
    )


def loss_of(inputs, **changes):
    loss, metrics = policy_gradient_loss(inputs, replace(SETTINGS, **changes))
    loss.backward()
    return loss.item(), inputs.policy_logprobs.grad.tolist(), {name: value.item() for name, value in metrics.items()}


def test_sft_loss_is_the_mean_over_all_ranks_tokens():
    assert sft_loss(torch.tensor([-1.0, -3.0]), 2).item() == 2.0
    assert sft_loss(torch.tensor([-1.0, -3.0]), 4).item() == 1.0


def test_docstring_example():
    loss, gradient, metrics = loss_of(make_inputs([1.0, 1.5, 3.0], [1.0, 1.0, -1.0]))
    assert loss == pytest.approx((-1.0 - 1.2 + 2.0) / 3)
    assert gradient == pytest.approx([-1 / 3, 0.0, 0.0])
    assert metrics == pytest.approx(
        {
            "clipped": 1,
            "ratio": 1.0 + 1.5 + 2.0,
            "gap": math.log(1.5) + math.log(3),
            "gap_max": math.log(3),
            "kl": 0,
            "masked": 0,
        }
    )


@pytest.mark.parametrize(
    ("ratio", "advantage", "term", "gradient"),
    [
        (1.1, 2.0, -2.2, -2.2),  # inside the clip: -r A, d/d log r = -r A
        (1.3, 2.0, -2.4, 0.0),  # too likely already: clipped at 1.2
        (0.5, 2.0, -1.0, -1.0),  # less likely than before, and good: pulled back up
        (0.7, -1.0, 0.8, 0.0),  # unlikely enough already: clipped at 0.8
        (1.5, -1.0, 1.5, 1.5),  # likelier and bad: pushed down
        (5.0, -1.0, 2.0, 0.0),  # past the cap
        (1.3, 0.0, 0.0, 0.0),
        (0.5, 0.0, 0.0, 0.0),
    ],
)
@pytest.mark.parametrize("name", ["grpo", "gspo"])  # one token is a sequence
def test_clipped_surrogate_and_its_gradient_by_hand(name, ratio, advantage, term, gradient):
    loss, (got,), metrics = loss_of(make_inputs([ratio], [advantage]), name=name)
    assert loss == pytest.approx(term)
    assert got == pytest.approx(gradient)
    assert metrics["clipped"] == (gradient == 0 and ratio < 2 and advantage != 0)


@pytest.mark.parametrize(("ratio", "advantage"), [(2.0, 1.0), (0.5, -1.0), (4.0, -1.0)])
@pytest.mark.parametrize("name", ["grpo", "gspo"])
def test_a_ratio_exactly_at_a_clip_limit_or_at_the_cap_is_inside(name, ratio, advantage):
    inputs = make_inputs([ratio], [advantage])
    loss, (gradient,), metrics = loss_of(inputs, name=name, clip_low=0.5, clip_high=1.0, importance_cap=4.0)
    assert loss == gradient == -ratio * advantage
    assert metrics["clipped"] == 0


def test_the_two_clips_are_independent():
    inputs = make_inputs([0.5, 1.5], [-1.0, 1.0])
    loss, gradient, _ = loss_of(inputs, clip_low=0.2, clip_high=0.6)
    assert loss == pytest.approx((0.8 - 1.5) / 2)
    assert gradient == pytest.approx([0.0, -0.75])


@pytest.mark.parametrize("name", LOSSES)
def test_a_huge_ratio_gives_finite_loss_and_gradient(name):
    inputs = make_inputs([1.0], [-1.0], policy=-1.0)
    inputs = replace(inputs, behaviour_logprobs=torch.tensor([-1000.0], dtype=torch.float64))
    loss, (gradient,), _ = loss_of(inputs, name=name)
    # cispo: weight 1.2, term 1.2 * policy, gradient 1.2
    assert (loss, gradient) == pytest.approx((-1.2, 1.2) if name == "cispo" else (2.0, 0.0))


def test_gspo_clips_a_whole_sequence_by_the_geometric_mean_of_its_ratios():
    # Sequence 0: s = sqrt(1.0 * 1.44) = 1.2; a token's gradient is -s A / 2, once for each of the 2 terms.
    args = [1.0, 1.44, 1.0], [1.0, 1.0, -1.0]
    loss, gradient, metrics = loss_of(make_inputs(*args, rows=[0, 0, 1]), name="gspo", clip_high=0.5)
    assert loss == pytest.approx((-1.2 - 1.2 + 1.0) / 3)
    assert gradient == pytest.approx([-0.4, -0.4, 1 / 3])
    assert metrics["ratio"] == pytest.approx(3.4)
    loss, gradient, metrics = loss_of(make_inputs(*args, rows=[0, 0, 1]), name="gspo", clip_high=0.1)
    assert loss == pytest.approx((-1.1 - 1.1 + 1.0) / 3)
    assert gradient == pytest.approx([0.0, 0.0, 1 / 3])
    assert metrics["clipped"] == 2


def test_gspo_with_the_sequence_mean_is_the_papers_objective():
    # s = sqrt(0.5 * 0.72) = 0.6 with A = -1 is below 0.8 and clipped; s = 1.2 with A = -1 is not.
    inputs = make_inputs([0.5, 1.0, 0.72, 1.44], [-1.0] * 4, rows=[0, 1, 0, 1])
    loss, gradient, _ = loss_of(inputs, name="gspo", loss_mean="sequence")
    assert loss == pytest.approx((0.8 + 1.2) / 2)
    assert gradient == pytest.approx([0.0, 0.3, 0.0, 0.3])


def test_cispo_clips_the_weight_and_never_the_gradient():
    inputs = make_inputs([0.5, 1.0, 3.0, 3.0], [1.0, 1.0, 1.0, -2.0], policy=-1.0)
    loss, gradient, metrics = loss_of(inputs, name="cispo")
    assert loss == pytest.approx((0.8 + 1.0 + 1.2 - 2.4) / 4)
    assert gradient == pytest.approx([-0.2, -0.25, -0.3, 0.6])
    assert metrics["clipped"] == 3


def test_cispo_weights_are_truncated_at_the_importance_cap():
    _, gradient, _ = loss_of(make_inputs([3.0, 0.1], [1.0, 1.0]), name="cispo", clip_low=1.0, clip_high=4.0)
    assert gradient == pytest.approx([-1.0, -0.05])


@pytest.mark.parametrize(
    ("loss_mean", "weights"),
    [("token", [1 / 4] * 4), ("sequence", [1 / 2, 1 / 6, 1 / 6, 1 / 6]), ("constant", [1 / 8] * 4)],
)
@pytest.mark.parametrize("name", ["grpo", "cispo"])
def test_weights_by_hand(name, loss_mean, weights):
    inputs = make_inputs([1.0] * 4, [1.0, 2.0, 3.0, 4.0], rows=[0, 1, 1, 1])
    _, gradient, _ = loss_of(inputs, name=name, loss_mean=loss_mean, max_completion_tokens=4)
    assert gradient == pytest.approx([-w * a for w, a in zip(weights, [1, 2, 3, 4], strict=True)])


def test_sequences_without_trained_tokens_count_in_the_sequence_mean():
    loss, _, _ = loss_of(make_inputs([1.0, 1.0], [1.0, 1.0], rows=[0, 2], num_sequences=3), loss_mean="sequence")
    assert loss == pytest.approx(-2 / 3)


def test_the_mean_of_a_sequence_without_trained_tokens_is_zero():
    inputs = make_inputs([1.0] * 3, [1.0] * 3, rows=[2, 0, 2])
    assert inputs.row_means(torch.tensor([1.0, 5.0, 2.0], dtype=torch.float64)).tolist() == [5.0, 0.0, 1.5]


def test_kl_penalty_adds_beta_times_its_value_and_gradient():
    inputs = make_inputs([1.0], [0.0], reference=[-1.5], policy=-1.0)
    loss, (gradient,), metrics = loss_of(inputs, kl_beta=0.1)
    assert loss == pytest.approx(0.1 * (math.exp(-0.5) - 0.5))
    assert gradient == pytest.approx(0.1 * (1 - math.exp(-0.5)))  # d k3 / d policy = 1 - exp(ref - policy)
    assert metrics["kl"] == pytest.approx(math.exp(-0.5) - 0.5)


def test_a_kl_that_is_only_watched_does_not_touch_the_loss():
    loss, (gradient,), metrics = loss_of(make_inputs([1.0], [1.0], reference=[1000.0]))
    assert (loss, gradient, metrics["kl"]) == (-1.0, -1.0, math.inf)


def test_kl_and_entropy_are_weighted_like_the_surrogate():
    # Advantages 0: only k1 = policy - reference and the entropy are left, [1, 2, 2] and [3, 1, 1].
    inputs = make_inputs([1.0] * 3, [0.0] * 3, rows=[0, 1, 1], reference=[-1.0, -2.0, -2.0], entropies=[3.0, 1.0, 1.0])
    changes = {"kl_beta": 0.1, "kl_estimator": "k1", "entropy_bonus": 0.5, "loss_mean": "sequence"}
    loss, gradient, metrics = loss_of(inputs, **changes)
    assert loss == pytest.approx(0.1 * (1 + 2) / 2 - 0.5 * (3 + 1) / 2)
    assert gradient == pytest.approx([0.05, 0.025, 0.025])
    assert inputs.entropies.grad.tolist() == pytest.approx([-0.25, -0.125, -0.125])
    assert metrics["kl"] == pytest.approx(5.0)


def test_sequences_far_from_the_policy_are_masked_by_their_mean_log_ratio():
    log_ratios = [0.3, 0.1, 0.3, -0.3, -0.2]
    inputs = make_inputs([math.exp(x) for x in log_ratios], [1.0] * 5, rows=[0, 0, 1, 1, 3], num_sequences=4)
    assert masked_sequences(inputs, 0.15).tolist() == [True, False, False, True]
    loss, gradient, metrics = loss_of(inputs, sequence_mask_gap=0.15, clip_high=0.9)
    assert loss == pytest.approx(-(math.exp(0.3) + math.exp(-0.3)) / 5)
    assert gradient == pytest.approx([0, 0, -math.exp(0.3) / 5, -math.exp(-0.3) / 5, 0])
    assert metrics["masked"] == 2


def test_a_masked_sequence_keeps_its_kl():
    inputs = make_inputs([1.9, 1.9], [1.0, 1.0], reference=[-0.5, -0.5])
    loss, gradient, _ = loss_of(inputs, sequence_mask_gap=0.1, kl_beta=0.1, kl_estimator="k2")
    assert loss == pytest.approx(0.1 * 0.125)
    assert gradient == pytest.approx([0.1 * 0.5 / 2] * 2)


@pytest.mark.parametrize(("name", "loss_mean"), NAMES_AND_MEANS)
def test_no_tokens_give_a_zero_loss_with_a_gradient(name, loss_mean):
    inputs = make_inputs([], [], reference=[], num_loss_tokens=7, num_sequences=2)
    changes = {"kl_beta": 0.1, "entropy_bonus": 0.1, "sequence_mask_gap": 0.1}
    loss, gradient, metrics = loss_of(inputs, name=name, loss_mean=loss_mean, **changes)
    assert loss == 0
    assert gradient == []
    assert set(metrics.values()) == {0}


@pytest.mark.parametrize(("name", "loss_mean"), NAMES_AND_MEANS)
def test_the_parts_of_a_sharded_step_add_up_to_the_whole(name, loss_mean):
    torch.manual_seed(0)
    rows = torch.tensor([0, 0, 0, 1, 1, 2, 3, 3, 3, 3])
    whole = LossInputs(
        policy_logprobs=-torch.rand(10, dtype=torch.float64),
        behaviour_logprobs=-torch.rand(10, dtype=torch.float64),
        reference_logprobs=-torch.rand(10, dtype=torch.float64),
        advantages=torch.randn(4, dtype=torch.float64)[rows],
        entropies=torch.rand(10, dtype=torch.float64),
        rows=rows,
        num_loss_tokens=10,
        num_sequences=4,
    )

    def part_of(sequences):
        chosen = torch.isin(rows, torch.tensor(sequences))
        names = ("policy_logprobs", "behaviour_logprobs", "reference_logprobs", "advantages", "entropies")
        local = torch.tensor([sequences.index(row) for row in rows[chosen].tolist()], dtype=torch.int64)
        part = replace(whole, rows=local, **{n: getattr(whole, n)[chosen] for n in names})
        part.policy_logprobs.requires_grad_()
        part.entropies.requires_grad_()
        settings = {"kl_beta": 0.1, "entropy_bonus": 0.1, "sequence_mask_gap": 0.2}
        loss, gradient, metrics = loss_of(part, name=name, loss_mean=loss_mean, **settings)
        tokens = chosen.nonzero().flatten().tolist()
        return loss, dict(zip(tokens, gradient, strict=True)), metrics

    loss, gradient, metrics = part_of([0, 1, 2, 3])
    assert 0 < metrics["masked"] < 4
    parts = [part_of([3, 0]), part_of([]), part_of([2]), part_of([1])]
    assert sum(part[0] for part in parts) == pytest.approx(loss)
    assert {token: g for part in parts for token, g in part[1].items()} == pytest.approx(gradient)
    for metric in metrics:
        combined = (max if metric == "gap_max" else sum)(part[2][metric] for part in parts)
        assert combined == pytest.approx(metrics[metric])


def test_settings_that_cannot_work_are_refused():
    with pytest.raises(ValueError, match="needs reference logprobs"):
        loss_of(make_inputs([1.0], [1.0]), kl_beta=0.1)
    inputs = make_inputs([1.0], [1.0])
    with pytest.raises(ValueError, match="needs entropies with gradient"):
        loss_of(replace(inputs, entropies=inputs.entropies.detach()), entropy_bonus=0.1)
    with pytest.raises(ValueError, match="loss_mean must be one of token, sequence, constant"):
        replace(SETTINGS, loss_mean="mean")


def test_step_metrics_divide_by_tokens_and_by_sequences():
    names = ("loss", "entropy", "clipped", "ratio", "gap", "kl")
    sums = dict.fromkeys(names, 4.0) | {"masked": 2.0, "tokens": 30.0, "computed_tokens": 24.0}
    metrics = step_metrics("rl", sums, 0.5, num_loss_tokens=8, num_sequences=16)
    assert metrics["train/loss"] == 4.0
    assert metrics["train/clip_frac"] == metrics["train/kl"] == metrics["train/entropy"] == 0.5
    assert metrics["train/masked_frac"] == 0.125
    assert metrics["train/shared_frac"] == pytest.approx(0.2)
    assert metrics["rollout/logprob_gap_max"] == 0.5


def reinforce(inputs, settings, *, weight):
    ratio = inputs.log_ratio.detach().exp()
    return Surrogate(-weight * inputs.advantages * inputs.policy_logprobs, ratio, ratio > 1 + settings.clip_high)


def one_for_all(inputs, settings):
    return Surrogate(inputs.policy_logprobs.sum(), inputs.log_ratio.sum(), inputs.rows.sum())


def test_a_loss_of_ones_own_gets_its_arguments_and_the_mean_comes_on_top():
    inputs = make_inputs([1.0, 1.5], [1.0, -1.0], policy=-1.0)
    loss, gradient, metrics = loss_of(inputs, name=f"{__name__}:reinforce", args={"weight": 3.0})
    # terms 3 and -3, gradients -3 and 3, over two tokens
    assert loss == pytest.approx(0.0)
    assert list(gradient) == pytest.approx([-1.5, 1.5])
    assert metrics["clipped"] == 1


def test_a_loss_of_ones_own_that_is_not_one_value_a_token_is_refused():
    with pytest.raises(ValueError, match=r"rl.loss: expected a Surrogate of tensors \[2\], .*one_for_all returned"):
        loss_of(make_inputs([1.0, 1.5], [1.0, -1.0]), name=f"{__name__}:one_for_all")


def test_a_loss_without_a_name_that_is_known_is_refused():
    with pytest.raises(ValueError, match=r"rl\.loss: expected one of grpo, .* package.module:function, found 'grp'"):
        replace(SETTINGS, name="grp")
