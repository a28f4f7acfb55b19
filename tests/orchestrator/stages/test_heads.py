"""Heads from made-up features: labels, metrics and thresholds follow from how the features were made."""

from dataclasses import replace

import numpy as np
import pytest

from actors.heads import pack_heads, unpack_heads
from configs.schema.heads import HeadsSection
from orchestrator.stages import heads as fit_heads
from orchestrator.stages.heads import HeadData, cross_scores, train_heads

H, M, N = 6, 240, 4
CONFIG = HeadsSection(learning_rate=1e-2, num_epochs=20, switcher_noise=0.1)


@pytest.fixture(scope="module")
def data():
    """Easy prompts have a negative first feature: base is right on them, reasoning is right on most of either kind.
    A completion is right when the second feature of its state is positive."""
    rng = np.random.default_rng(0)
    prompts = rng.normal(size=(M, H)).astype(np.float32)
    is_hard = prompts[:, 0] > 0
    base_correct = np.repeat(~is_hard[:, None], N, axis=1)
    reasoning_correct = rng.random((M, N)) < 0.95

    def states(correct):
        made = rng.normal(size=(M, N, H)).astype(np.float32)
        made[:, :, 1] = np.where(correct, 1, -1) * np.abs(made[:, :, 1])
        return made

    return HeadData(
        task_ids=tuple(f"t/{index}" for index in range(M)),
        prompt_states=prompts,
        base_correct=base_correct,
        reasoning_correct=reasoning_correct,
        base_states=states(base_correct),
        reasoning_states=states(reasoning_correct),
    )


def test_benefit_labels_teach_where_reasoning_is_right_and_base_is_not(data):
    heads, metrics = train_heads(data, CONFIG, seed=0)
    scores = heads.switcher.scores(data.prompt_states)
    is_hard = data.prompt_states[:, 0] > 0
    assert np.mean((scores > 0.5) == is_hard) > 0.95
    assert metrics["switcher_auc"] > 0.97
    assert metrics["verifier_auc"] > 0.97
    assert metrics["verifier_num_rows"] == 2 * N * round(0.2 * M)
    assert abs(metrics["routed_frac"] - is_hard.mean()) < 0.2
    assert metrics["routed_accuracy"] >= metrics["reasoning_accuracy"] - CONFIG.max_accuracy_loss - 1e-9
    assert unpack_heads(pack_heads(heads)).threshold == heads.threshold


def test_a_target_share_is_met(data):
    _, metrics = train_heads(data, replace(CONFIG, threshold="share", reasoning_share=0.25), seed=0)
    assert metrics["routed_frac"] == pytest.approx(0.25, abs=0.02)


def test_sources_label_by_where_a_prompt_is_from(data):
    rng = np.random.default_rng(1)
    states = rng.normal(size=(400, H)).astype(np.float32)
    labels = (states[:, 2] > 0).astype(float)  # not what benefit would say
    heads, metrics = train_heads(data, CONFIG, seed=0, sources=(states, labels))
    fresh = rng.normal(size=(200, H)).astype(np.float32)
    assert np.mean((heads.switcher.scores(fresh) > 0.5) == (fresh[:, 2] > 0)) > 0.9
    assert metrics["switcher_num_rows"] == 80
    assert metrics["base_accuracy"] == pytest.approx(data.base_correct.mean())  # judged on every task of the run


def test_prompts_that_neither_mode_gets_right_are_left_to_the_base(data):
    hopeless = replace(data, reasoning_correct=np.zeros((M, N), dtype=bool), base_correct=np.zeros((M, N), dtype=bool))
    _, metrics = train_heads(hopeless, CONFIG, seed=0)
    assert metrics["routed_frac"] == 0.0


def test_every_task_is_scored_once_by_a_switcher_that_was_trained_without_it(monkeypatch):
    left_out = []

    class FirstFeature:
        def scores(self, states):
            return states[:, 0]

    def fit_switcher(states, labels, is_validation, config, seed):
        left_out.append(is_validation)
        return FirstFeature(), None

    monkeypatch.setattr(fit_heads, "fit_switcher", fit_switcher)
    states = np.random.default_rng(0).normal(size=(23, H))
    scores = cross_scores(states, np.zeros(23), replace(CONFIG, validation_frac=0.2), seed=0)
    assert len(left_out) == 5
    assert (np.sum(left_out, axis=0) == 1).all()
    assert (scores == states[:, 0]).all()
