"""Our losses against TRL's own loss code on the same tensors: `GRPOTrainer._compute_loss` on a stand-in.

Ours sees the trained tokens in a row, TRL sees them padded. TRL comes with the extra `test`.
"""

from collections import defaultdict
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from actors.losses import LOSS_MEANS, LossInputs, LossSettings, policy_gradient_loss

pytestmark = pytest.mark.filterwarnings("ignore:TRL currently supports vLLM")

LENGTHS = [5, 2, 6, 1]
NUM_ROWS, NUM_COLUMNS = len(LENGTHS), max(LENGTHS)
MASK = torch.tensor([[t < length for t in range(NUM_COLUMNS)] for length in LENGTHS])

SETTINGS = LossSettings(
    name="grpo",
    args={},
    loss_mean="token",
    clip_low=0.2,
    clip_high=0.3,
    importance_cap=1e6,
    sequence_mask_gap=0.0,
    kl_beta=0.0,
    kl_estimator="k3",
    entropy_bonus=0.0,
    max_completion_tokens=9,
)
# TRL's loss types by what they are of ours: which mean they take.
LOSS_TYPES = {"grpo": "sequence", "bnpo": "token", "dapo": "token", "dr_grpo": "constant"}


@pytest.fixture(scope="module")
def trainer_class():
    """Imported here, not on collection: it takes ten seconds."""
    from trl import GRPOTrainer

    return GRPOTrainer


@pytest.fixture
def padded():
    """Logprobs `[B, T]` with ratios on both sides of every clip, advantages `[B]` of both signs."""
    torch.manual_seed(1)
    policy = -2 * torch.rand(NUM_ROWS, NUM_COLUMNS, dtype=torch.float64)
    return SimpleNamespace(
        policy=policy,
        behaviour=policy + 0.5 * torch.randn_like(policy),
        reference=policy + 0.5 * torch.randn_like(policy),
        entropies=torch.rand_like(policy),
        advantages=torch.tensor([1.3, -0.7, -1.1, 0.4], dtype=torch.float64),
    )


def ours(padded, settings):
    policy, entropies = (tensor.clone().requires_grad_() for tensor in (padded.policy, padded.entropies))
    rows = MASK.nonzero()[:, 0]
    inputs = LossInputs(
        policy_logprobs=policy[MASK],
        behaviour_logprobs=padded.behaviour[MASK],
        reference_logprobs=padded.reference[MASK],
        advantages=padded.advantages[rows],
        entropies=entropies[MASK],
        rows=rows,
        num_loss_tokens=sum(LENGTHS),
        num_sequences=NUM_ROWS,
    )
    loss, metrics = policy_gradient_loss(inputs, settings)
    loss.backward()
    return loss.detach(), policy.grad, entropies.grad, metrics


def theirs(trainer_class, padded, settings, loss_type, rows=slice(None), num_micro_batches=1, delta=None, **changes):
    """Loss and gradients of TRL's code on some of the rows, as one of so many micro-batches."""
    policy, entropies = (tensor.clone().requires_grad_() for tensor in (padded.policy, padded.entropies))
    mask, ones = MASK[rows].long(), torch.ones(len(MASK[rows]), 1, dtype=torch.int64)
    stand_in = SimpleNamespace(
        **{
            "loss_type": loss_type,
            "importance_sampling_level": "token",
            "beta": settings.kl_beta,
            "epsilon_low": settings.clip_low,
            "epsilon_high": settings.clip_high,
            "args": SimpleNamespace(use_bias_correction_kl=False, delta=delta, steps_per_generation=num_micro_batches),
            "max_completion_length": settings.max_completion_tokens,
            "off_policy_mask_threshold": None,
            "get_off_policy_mask": trainer_class.get_off_policy_mask,
            "top_entropy_quantile": 1.0,
            "use_vllm": False,
            "aux_loss_enabled": False,
            "_entropy_bonus_enabled": settings.entropy_bonus > 0,
            "use_adaptive_entropy": False,
            "entropy_coef": settings.entropy_bonus,
            "model": SimpleNamespace(training=True),
            "current_gradient_accumulation_steps": num_micro_batches,
            "accelerator": SimpleNamespace(
                num_processes=1,
                sync_gradients=True,
                gather=lambda tensor: tensor,
                reduce=lambda tensor, reduction: tensor,
            ),
            "_metrics": defaultdict(lambda: defaultdict(list)),
            "_get_per_token_logps_and_entropies": lambda *_, **__: (policy[rows], entropies[rows], None),
        }
        | changes
    )
    batch = {
        "prompt_ids": ones,
        "prompt_mask": ones,
        "completion_ids": mask,
        "completion_mask": mask,
        "advantages": padded.advantages[rows],
        "old_per_token_logps": padded.behaviour[rows],
        "ref_per_token_logps": padded.reference[rows],
        "num_items_in_batch": torch.tensor(sum(LENGTHS)),
    }
    loss = trainer_class._compute_loss(stand_in, None, batch)
    loss.backward()
    return loss.detach(), policy.grad, entropies.grad, stand_in._metrics["train"]


def assert_same(got, expected):
    torch.testing.assert_close(got[0], expected[0])
    torch.testing.assert_close(got[1], expected[1])


@pytest.mark.parametrize("kl_beta", [0.0, 0.1])
@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_grpo_with_every_mean(trainer_class, padded, loss_type, kl_beta):
    settings = replace(SETTINGS, loss_mean=LOSS_TYPES[loss_type], kl_beta=kl_beta)
    got, expected = ours(padded, settings), theirs(trainer_class, padded, settings, loss_type)
    assert_same(got, expected)
    assert got[3]["clipped"].item() / sum(LENGTHS) == pytest.approx(expected[3]["clip_ratio/region_mean"][0])
    assert 0 < got[3]["clipped"] < sum(LENGTHS)
    if kl_beta:
        assert got[3]["kl"].item() / sum(LENGTHS) == pytest.approx(expected[3]["kl"][0])


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_gspo_with_every_mean(trainer_class, padded, loss_type):
    settings = replace(
        SETTINGS, name="gspo", loss_mean=LOSS_TYPES[loss_type], clip_low=0.05, clip_high=0.05, kl_beta=0.1
    )
    got = ours(padded, settings)
    assert_same(got, theirs(trainer_class, padded, settings, loss_type, importance_sampling_level="sequence"))
    assert 0 < got[3]["clipped"] < sum(LENGTHS)


def test_cispo(trainer_class, padded):
    # TRL has no lower bound, and names the highest weight itself.
    settings = replace(SETTINGS, name="cispo", clip_low=1.0, kl_beta=0.1)
    got = ours(padded, settings)
    assert_same(got, theirs(trainer_class, padded, settings, "cispo", epsilon_high=1 + settings.clip_high))
    assert 0 < got[3]["clipped"] < sum(LENGTHS)


@pytest.mark.parametrize(("name", "level"), [("grpo", "token"), ("gspo", "sequence")])
def test_the_importance_cap_is_trls_two_sided_clip(trainer_class, padded, name, level):
    padded.policy[2, 0] = padded.behaviour[2, 0] + 10  # negative advantage: only the cap bounds it
    settings = replace(SETTINGS, name=name, loss_mean="sequence", importance_cap=1.5)
    got = ours(padded, settings)
    assert_same(got, theirs(trainer_class, padded, settings, "grpo", importance_sampling_level=level, delta=1.5))
    assert got[1][2, 0] == 0


def test_the_entropy_bonus_with_the_token_mean(trainer_class, padded):
    # TRL's bonus is a mean over tokens whatever the loss type.
    settings = replace(SETTINGS, entropy_bonus=0.05)
    got, expected = ours(padded, settings), theirs(trainer_class, padded, settings, "dapo")
    assert_same(got, expected)
    torch.testing.assert_close(got[2], expected[2])


def test_sequences_are_masked_as_trl_masks_those_with_a_negative_advantage(trainer_class, padded):
    # TRL's mask (DeepSeek-V3.2) is one-sided and spares positive advantages; ours is two-sided.
    padded.advantages = -padded.advantages.abs()
    drift = torch.tensor([[0.3], [0.1], [0.1], [0.4]], dtype=torch.float64)
    padded.behaviour = padded.policy + drift + 0.01 * torch.randn_like(padded.policy)
    settings = replace(SETTINGS, sequence_mask_gap=0.2, kl_beta=0.1)
    got = ours(padded, settings)
    assert_same(got, theirs(trainer_class, padded, settings, "dapo", off_policy_mask_threshold=0.2))
    assert got[3]["masked"] == 2


@pytest.mark.parametrize("loss_type", ["grpo", "dapo", "dr_grpo"])
def test_trls_micro_batches_add_up_to_our_whole_step(trainer_class, padded, loss_type):
    settings = replace(SETTINGS, loss_mean=LOSS_TYPES[loss_type], kl_beta=0.1)
    parts = [theirs(trainer_class, padded, settings, loss_type, rows, 2) for rows in (slice(0, 2), slice(2, 4))]
    assert_same(ours(padded, settings), [sum(values) for values in zip(*(part[:2] for part in parts), strict=True)])


def test_every_mean_is_compared():
    assert set(LOSS_TYPES.values()) == set(LOSS_MEANS)
