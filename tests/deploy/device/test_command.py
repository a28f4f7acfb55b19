"""The runtime with the real llama.cpp: modes, the boundary, forks, caps, heads, and what is refused."""

import io
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from actors.heads import ema_pool
from deploy.device.command import main
from deploy.device.decoding import Growing, Limits, Sampling, most_likely, sample
from deploy.device.runtime import DeviceModel, PromptError, Question, turn_adapter_on
from deploy.export.parity import Reference
from deploy.manifest import MANIFEST_FILE
from tests.deploy.exports import make_adapter, make_export

QUESTION = "37+58-12=?"
ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="module")
def device(plain_export):
    with DeviceModel(plain_export, num_threads=1) as opened:
        yield opened


@pytest.fixture(scope="module")
def judged(export_with_heads):
    with DeviceModel(export_with_heads, num_threads=1) as opened:
        yield opened


@pytest.fixture(scope="module")
def reference(random_model, plain_export):
    return Reference(random_model, plain_export / "adapter")


def greedy(device, **changes):
    return device.answer(Question(question=QUESTION, temperature=0.0, cap=None, **changes))


def test_prompts_are_those_of_the_training_stack(device, random_model):
    from actors.tokenizer import load_tokenizer
    from configs.schema.run import BudgetSection, ModelSection
    from orchestrator.data.tasks import with_budget

    tokenizer = load_tokenizer(str(random_model), ModelSection())
    budget = BudgetSection(prompt_template="{question}\nBudget: {budget_tokens}")
    messages = with_budget([{"role": "user", "content": QUESTION}], 30, budget)
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    expected = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert device.prompt_token_ids(Question(question=QUESTION, budget_tokens=30)) == expected
    # The middle of (12, 30), rounded up.
    assert device.prompt_token_ids(Question(question=QUESTION)) == expected
    assert device.prompt_token_ids(Question(question=QUESTION, budget_tokens=0)) != expected


def test_reasoning_has_the_adapter_on_from_the_last_prompt_token(device, reference):
    prompt = device.prompt_token_ids(Question(question=QUESTION))
    start = len(prompt) - 1
    context = device.make_context(64, 1)
    device.prefill(context, prompt, "reasoning")
    found = torch.from_numpy(turn_adapter_on(context, prompt)).log_softmax(0).numpy()
    gaps = {
        first: np.abs(found - reference.logprobs(reference.states(prompt, first))[-1]).max()
        for first in (start - 1, start, None)
    }
    assert gaps[start] < 0.02
    assert gaps[start - 1] > 0.1
    assert gaps[None] > 0.1


@pytest.mark.parametrize("mode", ["base", "reasoning"])
def test_greedy_completions_are_those_of_torch(device, reference, mode):
    answer = greedy(device, mode=mode)
    prompt = device.prompt_token_ids(Question(question=QUESTION))
    start = len(prompt) - 1 if mode == "reasoning" else None
    expected = reference.complete(prompt, start, 128 - len(prompt), frozenset([5]))
    assert list(answer.completions[0].token_ids) == expected
    assert answer.mode == mode
    assert answer.num_prompt_tokens == len(prompt)


def test_keys_and_values_can_be_kept_in_8_bits(tmp_path, tiny_model_dir):
    # Rows of 32, which the random model does not have.
    directory = make_export(tmp_path / "export", tiny_model_dir, make_adapter(tiny_model_dir))
    logits = {}
    for kv in ("f16", "q8_0"):
        with DeviceModel(directory, num_threads=1, kv_type=kv) as device:
            prompt = device.prompt_token_ids(Question(question=QUESTION))
            context = device.make_context(64, 1)
            _, _, logits[kv] = device.prefill(context, prompt, "base")
    difference = np.abs(logits["f16"] - logits["q8_0"]).max()
    assert 0 < difference < 0.05 * np.abs(logits["f16"]).max()


def test_switching_after_the_base_gives_what_reasoning_alone_gives(device):
    prompt = device.prompt_token_ids(Question(question=QUESTION))
    context = device.make_context(64, 1)
    device.prefill(context, prompt, "reasoning")
    alone = turn_adapter_on(context, prompt)
    _, _, base = device.prefill(context, prompt, "base")
    switched = turn_adapter_on(context, prompt)
    assert np.abs(switched - alone).max() < 1e-3
    assert np.abs(base - alone).max() > 0.5


def test_a_completion_does_not_depend_on_how_many_siblings_it_has(device):
    request = {"question": QUESTION, "mode": "reasoning", "seed": 3, "cap": 20}
    alone = device.answer(Question(**request)).completions
    many = device.answer(Question(**request, num_completions=5)).completions
    assert len(many) == 5
    assert many[0].token_ids == alone[0].token_ids
    assert len({completion.token_ids for completion in many}) == 5
    assert device.answer(Question(**request, num_completions=5)).completions == many


def test_a_cap_cuts_and_forces_an_answer(device):
    free = greedy(device, mode="base").completions[0]
    capped = greedy(device, mode="base", num_completions=2).completions
    assert free.token_ids == capped[0].token_ids == capped[1].token_ids
    cut = device.answer(Question(question=QUESTION, mode="base", temperature=0.0, cap=4)).completions[0]
    assert cut.token_ids[:4] == free.token_ids[:4]
    assert cut.token_ids[4:6] == (7, 20)
    assert cut.num_forced == 2
    assert len(cut.token_ids) <= 4 + 2 + 3


def test_an_end_token_at_the_cap_is_not_followed_by_a_forced_answer():
    limits = Limits(max_tokens=9, cap=2, forced_token_ids=(7, 8), answer_tokens=1, stop_token_ids=frozenset([5]))
    ended = Growing(number=0, rng=np.random.default_rng(), position=0)
    assert [ended.add(4, limits), ended.add(5, limits)] == [[], []]
    assert (ended.token_ids, ended.finish_reason) == ([4, 5], "stop")
    cut = Growing(number=0, rng=np.random.default_rng(), position=0)
    assert [cut.add(4, limits), cut.add(4, limits)] == [[], [7, 8]]
    assert cut.finish_reason == ""
    assert cut.add(9, limits) == []
    assert (cut.token_ids, cut.num_forced, cut.finish_reason) == ([4, 4, 7, 8, 9], 2, "length")


def test_sampling_follows_temperature_and_top_p():
    logits, rng = np.log(np.array([0.5, 0.25, 0.15, 0.1], dtype=np.float32)), np.random.default_rng(0)
    assert sample(logits, Sampling(temperature=0.0), rng) == 0
    assert sample(logits, Sampling(temperature=1e-45), rng) == 0
    drawn = [sample(logits, Sampling(temperature=1.0), rng) for _ in range(4000)]
    assert np.bincount(drawn, minlength=4) / 4000 == pytest.approx([0.5, 0.25, 0.15, 0.1], abs=0.03)
    # At T = 0.5 probabilities are squared: 0.25, 0.0625, 0.0225, 0.01 of 0.345.
    drawn = [sample(logits, Sampling(temperature=0.5), rng) for _ in range(4000)]
    assert np.bincount(drawn, minlength=4) / 4000 == pytest.approx([0.725, 0.181, 0.065, 0.029], abs=0.03)
    drawn = [sample(logits, Sampling(temperature=1.0, top_p=0.7), rng) for _ in range(4000)]
    assert np.bincount(drawn, minlength=4) / 4000 == pytest.approx([2 / 3, 1 / 3, 0, 0], abs=0.03)


@pytest.mark.parametrize(("width", "spread"), [(40, 2.0), (5000, 0.1), (5000, 3.0), (5000, 20.0)])
def test_the_most_likely_tokens_are_those_of_a_full_sort(width, spread):
    weights = np.exp(spread * np.random.default_rng(1).standard_normal(width)).astype(np.float32)
    order = np.argsort(-weights, kind="stable")
    for share in (0.1, 0.5, 0.9, 0.999):
        num = int((np.cumsum(weights[order], dtype=np.float64) < share * weights.sum(dtype=np.float64)).sum()) + 1
        assert most_likely(weights, share).tolist() == order[:num].tolist()
    assert most_likely(np.array([5.0, 1.0, 3.0, 1.0], dtype=np.float32), 0.8).tolist() == [0, 2]


def test_the_switcher_decides_from_the_base_states_of_the_prompt(judged, reference):
    answer = judged.answer(Question(question=QUESTION, cap=4))
    prompt = judged.prompt_token_ids(Question(question=QUESTION))
    pooled = ema_pool(reference.states(prompt, None).numpy(), 4, 0.5)
    expected = judged.heads.switcher_probability(pooled)
    assert answer.switcher_probability == pytest.approx(expected, abs=0.01)
    assert 0.02 < expected < 0.98
    assert answer.mode == ("reasoning" if expected >= 0.5 else "base")
    assert judged.answer(Question(question=QUESTION, cap=4, mode="base")).switcher_probability is None


@pytest.mark.parametrize(("threshold", "mode"), [(0.0, "reasoning"), (1.0, "base")])
def test_the_threshold_chooses_the_mode(tmp_path, random_model, random_adapter, threshold, mode):
    directory = make_export(tmp_path / "export", random_model, random_adapter, threshold=threshold)
    with DeviceModel(directory, num_threads=1) as device:
        chosen = device.answer(Question(question=QUESTION, temperature=0.0, cap=8))
        asked = device.answer(Question(question=QUESTION, temperature=0.0, cap=8, mode=mode))
    assert chosen.mode == mode
    assert chosen.completions[0].token_ids == asked.completions[0].token_ids


@pytest.mark.parametrize("mode", ["base", "reasoning"])
def test_the_verifier_reads_the_state_behind_its_prompt_in_the_mode_of_the_completion(judged, reference, mode):
    answer = judged.answer(Question(question=QUESTION, cap=6, mode=mode, num_completions=3, seed=1))
    prompt = judged.prompt_token_ids(Question(question=QUESTION))
    suffix = judged.chat.encode("Is it right?")
    assert len({completion.token_ids for completion in answer.completions}) == 3
    for completion in answer.completions:
        start = len(prompt) - 1 if mode == "reasoning" else None
        states = reference.states([*prompt, *completion.token_ids, *suffix], start)
        assert completion.score == pytest.approx(judged.heads.verifier_score(states[-1].numpy()), abs=0.02)
    assert len({round(completion.score, 3) for completion in answer.completions}) > 1


def test_text_is_streamed_as_it_is_decoded(device):
    events = []
    answer = device.answer(Question(question=QUESTION, mode="reasoning", cap=12), lambda *event: events.append(event))
    assert events[0] == ("mode", ("reasoning", None))
    assert "".join(text for kind, (number, text) in events[1:] if number == 0) == answer.completions[0].text
    assert answer.timings["first_token_s"] > 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"question": " \n"}, "the prompt is empty"),
        ({"question": "1+" * 200}, "the prompt is too long: it has 4.. tokens, expected at most 127"),
        ({"num_completions": 0}, "n: expected from 1 to 64 completions, found 0"),
        ({"cap": -1}, "cap: expected"),
        ({"cap": 1000}, "the prompt is too long"),
        ({"temperature": float("nan")}, "temperature: expected at least 0"),
        ({"budget_tokens": -5}, "budget: expected"),
    ],
)
def test_requests_that_cannot_be_answered_are_refused(device, changes, message):
    with pytest.raises(PromptError, match=message):
        device.answer(Question(**{"question": QUESTION, **changes}))


def test_the_command_answers_in_json_and_streams(plain_export, capsys):
    assert main([str(plain_export), "--prompt", QUESTION, "--json", "--n", "2", "--cap", "5", "--threads", "1"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["mode"], len(result["completions"])) == ("reasoning", 2)
    assert main([str(plain_export), "--prompt", QUESTION, "--mode", "base", "--cap", "5", "--threads", "1"]) == 0
    assert capsys.readouterr().out.startswith("[base]\n")


def test_questions_are_read_a_line_each(plain_export, capsys, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO("1+1=?\n2+2=?\n"))
    assert main([str(plain_export), "--interactive", "--cap", "3", "--threads", "1"]) == 0
    assert capsys.readouterr().out.count("tokens/s") == 2


def damage(directory: Path, name: str) -> None:
    data = bytearray((directory / name).read_bytes())
    data[len(data) // 2] ^= 1
    (directory / name).write_bytes(bytes(data))


@pytest.mark.parametrize("name", ["base.gguf", "adapter.gguf", "heads.safetensors", "tokenizer/tokenizer.json"])
def test_a_flipped_bit_is_refused_in_one_line(tmp_path, export_with_heads, capsys, name):
    directory = shutil.copytree(export_with_heads, tmp_path / "export")
    damage(directory, name)
    assert main([str(directory), "--prompt", QUESTION]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert f"{name}: expected SHA-256" in error


def test_missing_cut_and_foreign_files_are_refused_in_one_line(tmp_path, export_with_heads, capsys):
    def refusal(change) -> str:
        directory = shutil.copytree(export_with_heads, tmp_path / str(len(list(tmp_path.iterdir()))))
        change(directory)
        assert main([str(directory), "--prompt", QUESTION]) == 1
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        return error

    def edit(**changes):
        def change(directory: Path) -> None:
            path = directory / MANIFEST_FILE
            path.write_text(json.dumps(json.loads(path.read_text()) | changes))

        return change

    assert "expected this file of the export" in refusal(lambda d: (d / "adapter.gguf").unlink())
    assert "the file is damaged" in refusal(lambda d: (d / "base.gguf").write_bytes(b"GGUF"))
    assert "expected the manifest of an export" in refusal(lambda d: (d / MANIFEST_FILE).write_text("{"))
    assert "expected an export directory" in refusal(lambda d: (d / MANIFEST_FILE).unlink())
    assert "heads of another model" in refusal(edit(base_sha256="0" * 64))
    assert "expected format_version 1" in refusal(edit(format_version=2))
    assert "start_rule" in refusal(edit(start_rule="prompt_len"))
    assert "files inside the directory" in refusal(edit(files={"../x": {"sha256": "", "size_bytes": 0}}))


def test_bad_requests_end_with_status_two_in_one_line(plain_export, capsys):
    one = ["--prompt", "1"]
    for arguments in (
        ["--prompt", ""],
        ["--prompt", "1+" * 300],
        ["--prompt", "\udcff"],
        [*one, "--n", "99"],
        [*one, "--seed", "-1"],
        [*one, "--threads", "-1"],
        [*one, "--temperature", "nan"],
        [*one, "--temperature", "1e30"],
        [*one, "--budget", "-1"],
    ):
        assert main([str(plain_export), *arguments]) == 2
        assert capsys.readouterr().err.count("\n") == 1


def test_the_device_needs_nothing_heavy():
    code = (
        "import sys, deploy.device.command; heavy = {'torch', 'transformers', 'vllm', 'ray', 'omegaconf', 'mlflow', 'gguf', "
        "'math_verify'}; print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
