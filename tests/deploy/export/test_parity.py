"""The comparison of an export with the training stack: nothing to find on a right one, and what a wrong one shows."""

import dataclasses
import math

from actors import adapters
from configs.schema.export import ExportSection
from deploy.export.parity import ModeParity, ParityReport, Reference
from deploy.export.quantize import quantize_model
from tests.deploy.exports import QUESTIONS, compare, make_export


def test_a_right_export_agrees_in_every_number(random_model, export_with_heads):
    report = compare(export_with_heads, Reference(random_model, export_with_heads / "adapter"))
    assert report.num_prompts == len(QUESTIONS)
    for parity in report.modes.values():
        assert parity.greedy_agreement == parity.token_agreement == 1.0
        assert parity.max_logprob_gap < 0.05
        assert parity.device_accuracy == parity.reference_accuracy
        assert parity.verifier_gap < 0.02
    assert report.switcher_gap < 0.02
    assert report.first_difference is None
    assert report.problems(ExportSection(), "f32") == []


def test_an_int4_export_is_the_int4_base(tmp_path, random_model, random_adapter):
    base = tmp_path / "int4"
    quantize_model(random_model, base, "least_l2", "bfloat16")
    directory = make_export(tmp_path / "export", base, random_adapter, precision="int4")
    same = compare(directory, Reference(base, directory / "adapter"))
    other = compare(directory, Reference(random_model, directory / "adapter"))
    for mode in ("base", "reasoning"):
        # llama.cpp rounds activations to 8 bits; weights of another grid are further away than that.
        assert same.modes[mode].mean_logprob_gap < 0.5 * other.modes[mode].mean_logprob_gap


def test_another_adapter_is_found_and_the_first_difference_is_named(
    random_model, random_adapter, plain_export, tmp_path
):
    adapters.write_directory(adapters.perturbed(random_adapter, seed=1), tmp_path / "other")
    report = compare(plain_export, Reference(random_model, tmp_path / "other"))
    assert report.modes["base"].greedy_agreement == 1.0
    assert report.modes["reasoning"].greedy_agreement < 0.5
    assert report.first_difference.mode == "reasoning"
    assert 0 < report.first_difference.margin <= report.modes["reasoning"].max_margin
    assert report.modes["base"].max_margin == 0.0
    problems = report.problems(ExportSection(), "f32")
    assert problems[0].startswith("reasoning: greedy agreement, ties apart: expected at least 0.99, found 0.")
    assert problems[-1].startswith("the first difference: Difference(mode='reasoning', task_id='1+2=?', index=")


def test_completions_that_part_at_a_tie_are_counted_apart(
    random_model, random_adapter, plain_export, tmp_path, monkeypatch
):
    adapters.write_directory(adapters.perturbed(random_adapter, seed=1), tmp_path / "other")
    reference = Reference(random_model, tmp_path / "other")
    # Each number is held against others of its own run: a busy machine may round another way the next time.
    for tie_nats in (-1.0, math.inf):
        monkeypatch.setattr("deploy.export.parity.TIE_NATS", tie_nats)
        found = compare(plain_export, reference).modes["reasoning"]
        assert found.greedy_agreement < 1.0
        assert found.agreement_but_ties == (1.0 if tie_nats > 0 else found.greedy_agreement)


def test_each_tolerance_is_checked():
    good = ModeParity(
        greedy_agreement=1.0,
        agreement_but_ties=1.0,
        token_agreement=1.0,
        max_margin=0.0,
        mean_logprob_gap=0.0,
        max_logprob_gap=0.0,
        device_accuracy=0.5,
        reference_accuracy=0.5,
        verifier_gap=0.0,
    )
    config = ExportSection()

    def problems(precision="f16", switcher_gap=0.0, **changes):
        bad = dataclasses.replace(good, **changes)
        modes = {"base": good, "reasoning": bad}
        report = ParityReport(num_prompts=100, modes=modes, switcher_gap=switcher_gap, first_difference=None)
        return report.problems(config, precision)

    assert problems() == []
    assert problems(greedy_agreement=0.97, agreement_but_ties=0.98) == [
        "reasoning: greedy agreement, ties apart: expected at least 0.99, found 0.9800 (0.9700 with them)"
    ]
    assert problems(greedy_agreement=0.5) == []
    assert problems("int4", agreement_but_ties=0.5, token_agreement=0.96) == []
    assert problems("int4", token_agreement=0.94) == [
        "reasoning: greedy tokens: expected at least 0.95 the same, found 0.9400"
    ]
    assert len(problems(mean_logprob_gap=0.06)) == 1
    # One point and one task.
    assert problems(device_accuracy=0.48) == []
    assert problems(device_accuracy=0.53) == ["reasoning: accuracy: expected 0.5000 ± 0.0200, found 0.5300"]
    assert len(problems(verifier_gap=0.06)) == 1
    assert problems(switcher_gap=0.06) == ["switcher: expected scores within 0.05, found a gap of 0.0600"]


def test_greedy_completion_of_the_reference_is_what_full_forwards_choose(random_model, plain_export):
    reference = Reference(random_model, plain_export / "adapter")
    prompt = [2, 30, 40, 50, 5, 3]
    expected = list(prompt)
    for _ in range(10):
        expected.append(int(reference.logprobs(reference.states(expected, 5)[-1:])[0].argmax()))
    assert reference.complete(prompt, 5, 10, frozenset()) == expected[6:]
    stop = expected[9]
    first = expected[6:].index(stop)
    assert reference.complete(prompt, 5, 10, frozenset([stop])) == expected[6 : 7 + first]


def test_f16_agrees_too(tmp_path, random_model, random_adapter):
    directory = make_export(tmp_path / "export", random_model, random_adapter, precision="f16")
    report = compare(directory, Reference(random_model, directory / "adapter"))
    assert all(parity.mean_logprob_gap < 0.01 for parity in report.modes.values())
