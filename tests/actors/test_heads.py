"""Heads: forward passes and metrics by hand or against torch and scikit-learn, training on data made to be learnt."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.metrics import brier_score_loss, roc_auc_score

from actors.head_metrics import (
    auc,
    brier,
    calibration_error,
    threshold_for_accuracy,
    threshold_for_share,
    thresholds,
)
from actors.head_training import fit_switcher, fit_verifier, split_by_task
from actors.heads import EmaPooler, Heads, Switcher, Verifier, ema_pool, pack_heads, read_heads, unpack_heads
from configs.schema.heads import HeadsSection

RNG = np.random.default_rng(0)
H = 6


def make_heads():
    def draw(*shape):
        return RNG.normal(size=shape).astype(np.float32)

    scale = np.abs(draw(H)) + 0.5
    return Heads(
        switcher=Switcher(
            feature_mean=draw(H),
            feature_scale=scale,
            hidden_weight=draw(8, H),
            hidden_bias=draw(8),
            output_weight=draw(1, 8),
            output_bias=draw(1),
        ),
        verifier=Verifier(feature_mean=draw(H), feature_scale=scale, weight=draw(1, H), bias=draw(1)),
        threshold=0.37,
        chunk_tokens=128,
        ema_alpha=0.5,
        verification_prompt="\nRight? Ünsure",
        base_sha256="ab" * 32,
    )


def test_pooling_by_hand():
    states = np.array([[1.0], [3.0], [6.0]])
    assert ema_pool(states, 2, 0.5) == [4.0]  # chunk means 2 and 6
    assert ema_pool(states, 2, 0.25) == [3.0]
    assert ema_pool(states, 3, 0.5) == pytest.approx(10 / 3)
    assert ema_pool(states, 100, 0.5) == pytest.approx(10 / 3)
    assert ema_pool(states, 1, 0.5) == [0.5 * 6 + 0.25 * 3 + 0.25 * 1]


def test_pooling_in_pieces_by_hand():
    pooler = EmaPooler(2, 0.25)
    with pytest.raises(ValueError, match="got none"):
        pooler.result()
    for value in (1.0, 3.0, 10.0, 20.0, 4.0):
        pooler.add(np.array([[value, -value]]))
    # Chunk means 2, 15 and 4, the last chunk being short: 2 → 0.25 * 15 + 0.75 * 2 = 5.25 → 0.25 * 4 + 0.75 * 5.25.
    assert pooler.result().tolist() == [4.9375, -4.9375]


def test_probabilities_by_hand():
    hidden, output = np.zeros((8, 2), dtype=np.float32), np.zeros((1, 8), dtype=np.float32)
    hidden[0], hidden[1], output[0, :2] = [1.0, 0.0], [-1.0, 0.0], [2.0, 100.0]
    switcher = Switcher(
        feature_mean=np.array([1.0, 0.0]),
        feature_scale=np.array([2.0, 1.0]),
        hidden_weight=hidden,
        hidden_bias=np.zeros(8),
        output_weight=output,
        output_bias=np.array([-1.0]),
    )
    verifier = Verifier(
        feature_mean=np.array([0.0, 1.0]),
        feature_scale=np.array([1.0, 4.0]),
        weight=np.array([[1.0, -1.0]]),
        bias=np.array([0.5]),
    )
    heads = replace(make_heads(), switcher=switcher, verifier=verifier)
    # (5 - 1) / 2 = 2 → ReLU: 2 and 0 → 2 * 2 - 1 = 3
    assert heads.switcher_probability(np.array([5.0, 9.0])) == pytest.approx(1 / (1 + np.exp(-3)))
    # 3 - (9 - 1) / 4 + 0.5 = 1.5
    assert heads.verifier_score(np.array([3.0, 9.0])) == pytest.approx(1 / (1 + np.exp(-1.5)))


@pytest.mark.parametrize("pieces", [[37], [1] * 37, [16, 16, 5], [3, 30, 4], [17, 20]])
def test_pooling_piece_by_piece_equals_pooling_at_once(pieces):
    states = torch.randn(37, H, generator=torch.Generator().manual_seed(1))
    pool = EmaPooler(8, 0.5)
    seen = 0
    for piece in pieces:
        pool.add(states[seen : seen + piece])
        seen += piece
        np.testing.assert_allclose(pool.result(), ema_pool(states[:seen].numpy(), 8, 0.5), atol=1e-5)
    assert pool.num_seen == 37


def test_scores_equal_torch_modules():
    heads = make_heads()
    x = RNG.normal(size=(5, H)).astype(np.float32)
    hidden, output, linear = torch.nn.Linear(H, 8), torch.nn.Linear(8, 1), torch.nn.Linear(H, 1)
    s, v = heads.switcher, heads.verifier
    with torch.no_grad():
        for module, weight, bias in (
            (hidden, s.hidden_weight, s.hidden_bias),
            (output, s.output_weight, s.output_bias),
            (linear, v.weight, v.bias),
        ):
            module.weight.copy_(torch.from_numpy(weight))
            module.bias.copy_(torch.from_numpy(bias))
        tensor = torch.from_numpy(x)
        switched = output(torch.relu(hidden((tensor - torch.from_numpy(s.feature_mean)) / s.feature_scale)))
        verified = linear((tensor - torch.from_numpy(v.feature_mean)) / v.feature_scale)
    np.testing.assert_allclose(s.scores(x), torch.sigmoid(switched)[:, 0], atol=1e-6)
    np.testing.assert_allclose(v.scores(x), torch.sigmoid(verified)[:, 0], atol=1e-6)


def test_heads_come_back_from_the_file_as_they_went_in(tmp_path):
    heads = make_heads()
    path = tmp_path / "heads.safetensors"
    path.write_bytes(pack_heads(heads))
    back = read_heads(path)
    for part, names in (("switcher", Switcher.__slots__), ("verifier", Verifier.__slots__)):
        for name in names:
            np.testing.assert_array_equal(getattr(getattr(back, part), name), getattr(getattr(heads, part), name))
    for name in ("threshold", "chunk_tokens", "ema_alpha", "verification_prompt", "base_sha256"):
        assert getattr(back, name) == getattr(heads, name)


def test_a_file_of_another_format_is_refused(tmp_path):
    from safetensors.numpy import save

    with pytest.raises(ValueError, match="expected format_version 1, found 2"):
        unpack_heads(pack_heads(make_heads()).replace(b'"format_version":"1"', b'"format_version":"2"'))
    path = tmp_path / "other.safetensors"
    path.write_bytes(save({"x": np.zeros(1)}))
    with pytest.raises(ValueError, match=r"other.safetensors: heads: expected a safetensors file of both heads"):
        read_heads(path)


def test_auc_and_brier_equal_scikit_learn_with_ties():
    scores = RNG.integers(0, 6, 300) / 5
    labels = (RNG.random(300) < scores).astype(int)
    assert auc(scores, labels) == pytest.approx(roc_auc_score(labels, scores))
    assert brier(scores, labels) == pytest.approx(brier_score_loss(labels, scores))
    assert auc(scores, np.ones(300)) == 0.5


def test_calibration_error_by_hand():
    # bin 0.2–0.3: mean score 0.25, half positive (2 rows); bin 0.9–1.0: mean 1.0, none positive (2 rows)
    scores, labels = np.array([0.25, 0.25, 1.0, 1.0]), np.array([0, 1, 0, 0])
    assert calibration_error(scores, labels) == pytest.approx(0.5 * 0.25 + 0.5 * 1.0)


def test_thresholds_route_everything_between_all_and_none():
    scores = np.array([0.2, 0.6, 0.6, 0.9])
    assert [int((scores >= threshold).sum()) for threshold in thresholds(scores)] == [4, 3, 1, 0]


def test_threshold_for_a_share():
    scores = np.array([0.1, 0.2, 0.3, 0.4])
    assert threshold_for_share(scores, 0.5) == pytest.approx(0.25)
    assert threshold_for_share(scores, 1.0) == 0.0
    assert (scores >= threshold_for_share(scores, 0.0)).sum() == 0
    assert (scores >= threshold_for_share(scores, 0.625)).sum() == 2  # as near to 2 as to 3: the fewer


def test_threshold_for_an_accuracy_routes_as_few_as_it_can():
    scores = np.array([0.1, 0.2, 0.3, 0.4])
    base, reasoning = np.array([1.0, 1.0, 0.0, 0.0]), np.array([1.0, 1.0, 1.0, 0.5])
    assert threshold_for_accuracy(scores, base, reasoning, 0.0) == pytest.approx(0.25)
    # Reasoning alone has 3.5 of 4; with only the last prompt routed it is 2.5 of 4.
    assert threshold_for_accuracy(scores, base, reasoning, 0.25) == pytest.approx(0.35)
    # Where base is worse on every prompt, all are routed.
    assert threshold_for_accuracy(scores, np.zeros(4), np.ones(4), 0.0) == 0.0


def test_the_split_keeps_tasks_whole_and_the_seed_decides():
    task_ids = [f"t/{index % 10}" for index in range(50)]
    held_out = split_by_task(task_ids, 0.2, seed=1)
    by_task = {task: {bool(held_out[i]) for i in range(50) if task_ids[i] == task} for task in set(task_ids)}
    assert all(len(sides) == 1 for sides in by_task.values())
    assert sum(True in sides for sides in by_task.values()) == 2
    assert (held_out == split_by_task(task_ids, 0.2, seed=1)).all()
    assert (held_out != split_by_task(task_ids, 0.2, seed=2)).any()
    assert sum(split_by_task(["a", "b"], 0.01, seed=0)) == 1
    with pytest.raises(ValueError, match="at least 2 tasks"):
        split_by_task(["a", "a"], 0.5, seed=0)


def learnable(num_rows=1500, seed=3):
    """Features with an offset and unequal scales; a logistic label and one that is not linear."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(num_rows, H))
    linear = (rng.random(num_rows) < 1 / (1 + np.exp(-2 * (x[:, 0] + x[:, 1])))).astype(float)
    bent = (np.abs(x[:, 2]) > 0.7).astype(float)
    features = (x * np.array([1, 10, 100, 1, 1, 1]) + 50).astype(np.float32)
    return features, linear, bent, rng.random(num_rows) < 0.3


CONFIG = HeadsSection(learning_rate=5e-3, num_epochs=20)


def test_the_verifier_learns_a_linear_label_and_is_calibrated():
    features, linear, _, held_out = learnable()
    verifier, fit = fit_verifier(features, linear, held_out, CONFIG, seed=0)
    scores = verifier.scores(features[held_out])
    truth = 2 * ((features[held_out, 0] - 50) + (features[held_out, 1] - 50) / 10)
    assert auc(scores, linear[held_out]) > auc(truth, linear[held_out]) - 0.01
    assert calibration_error(scores, linear[held_out]) < 0.1
    assert 1 <= fit.best_epoch <= 20


def test_the_switcher_learns_what_no_linear_head_can():
    features, _, bent, held_out = learnable()
    config = replace(CONFIG, switcher_noise=0.1, num_epochs=40, learning_rate=1e-2)
    switcher, _ = fit_switcher(features, bent, held_out, config, seed=0)
    verifier, _ = fit_verifier(features, bent, held_out, config, seed=0)
    assert auc(switcher.scores(features[held_out]), bent[held_out]) > 0.95
    assert auc(verifier.scores(features[held_out]), bent[held_out]) < 0.65


def test_training_is_the_same_for_the_same_seed_and_never_sees_validation_labels():
    features, linear, _, held_out = learnable(300)
    first, _ = fit_verifier(features, linear, held_out, CONFIG, seed=0)
    again, _ = fit_verifier(features, linear, held_out, CONFIG, seed=0)
    other, _ = fit_verifier(features, linear, held_out, CONFIG, seed=1)
    np.testing.assert_array_equal(first.weight, again.weight)
    assert not np.array_equal(first.weight, other.weight)
    flipped = np.where(held_out, 1 - linear, linear)
    _, fit = fit_verifier(features, linear, held_out, CONFIG, seed=0)
    _, flipped_fit = fit_verifier(features, flipped, held_out, CONFIG, seed=0)
    assert fit.train_losses == flipped_fit.train_losses
