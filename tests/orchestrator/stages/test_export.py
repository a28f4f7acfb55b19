"""The export stage on the embedded model: written whole, compared, refused, replaced."""

import json
import math

import numpy as np
import pytest

from actors import adapters
from configs.load import ConfigError, load_config
from configs.models import weights_sha256
from deploy.device.command import main as device
from deploy.export.merge import write_merged
from deploy.manifest import check_files, read_manifest
from orchestrator.stages.export import ask, export, is_exported
from orchestrator.stages.quantisation import greedy, perplexity
from tests.deploy.exports import KINDS, make_adapter, make_model, write_heads

# The random adapter makes near ties: which token is first is not the point here.
SETTINGS = (
    "evaluation.num_tasks=4",
    "export.parity_tokens=16",
    "export.min_greedy_agreement=0.5",
    # The mean over two prompts of a random adapter.
    "export.min_token_agreement_int4=0",
    "export.max_logprob_gap_int4=0.5",
)


@pytest.fixture(scope="module")
def packed(tiny_model_dir):
    return make_adapter(tiny_model_dir)


def configured(root, *overrides):
    return load_config("quickstart", [f"run.dir={root}", "run.name=r", *SETTINGS, *overrides])


def test_an_export_is_whole_and_runs(tmp_path, packed, tiny_model_dir, capsys):
    config = configured(tmp_path)
    write_heads(config.run_dir / "heads" / "heads.safetensors", weights_sha256(tiny_model_dir), 192)
    metrics = export(config, packed, run_id="abc")
    directory = config.run_dir / "export"
    options = json.loads((directory / "adapter" / "adapter_config.json").read_text())
    assert options["base_model_name_or_path"] == str(tiny_model_dir)
    manifest = read_manifest(directory)
    check_files(directory, manifest)
    names = {path.relative_to(directory).as_posix() for path in directory.rglob("*") if path.is_file()}
    assert names == {*manifest.files, "manifest.json"}
    assert {"base.gguf", "adapter.gguf", "heads.safetensors", "tokenizer/tokenizer.json", "MODEL_CARD.md"} <= names
    assert (
        adapters.unpack(adapters.read_directory(directory / "adapter"))[0].keys() == adapters.unpack(packed)[0].keys()
    )
    assert (manifest.training["run_id"], manifest.switcher, manifest.default_cap) == ("abc", {"threshold": 0.5}, None)
    assert metrics["export/reasoning/mean_logprob_gap"] < 0.01
    assert metrics["export/switcher_gap"] < 0.05
    assert json.loads((config.run_dir / "parity.json").read_text())["num_prompts"] == 4
    assert device([str(directory), "--prompt", "1+1=?", "--cap", "4", "--threads", "1"]) == 0
    assert "·" in capsys.readouterr().out
    assert "→" in ask(config)


def test_an_export_is_replaced_by_force_only(tmp_path, packed):
    config = configured(tmp_path, "export.parity_prompts=0")
    assert export(config, packed, "") == {}
    before = (config.run_dir / "export" / "manifest.json").read_text()
    with pytest.raises(RuntimeError, match="expected no export, found one; --force replaces it"):
        export(config, packed, "")
    capped = configured(tmp_path, "export.parity_prompts=0", "export.default_cap_tokens=50")
    export(capped, packed, "", force=True)
    assert read_manifest(config.run_dir / "export").default_cap == 50
    assert (config.run_dir / "export" / "manifest.json").read_text() != before
    assert [path.name for path in config.run_dir.iterdir()] == ["export"]


def test_an_export_that_is_not_close_enough_is_not_left_behind(tmp_path, packed):
    config = configured(tmp_path, "export.max_logprob_gap=1e-12")
    with pytest.raises(RuntimeError, match="not what was trained: base: mean logprob gap: expected at most 1e-12 nats"):
        export(config, packed, "")
    assert not is_exported(config.run_dir)
    assert sorted(path.name for path in config.run_dir.iterdir()) == ["parity.json"]


def test_an_int4_run_exports_the_base_that_it_trained_on(tmp_path, packed):
    config = configured(tmp_path, "model.base_precision=int4", "export.precision=int4", "export.parity_prompts=2")
    export(config, packed, "")
    manifest = read_manifest(config.run_dir / "export")
    assert manifest.precision == "int4"
    assert manifest.base_sha256 == weights_sha256(config.run_dir / "int4_base")
    assert manifest.files["base.gguf"]["size_bytes"] < 1_400_000


def test_heads_of_another_base_and_ordinary_adapters_are_refused(tmp_path, packed):
    config = configured(tmp_path)
    write_heads(config.run_dir / "heads" / "heads.safetensors", "0" * 64, 192)
    with pytest.raises(RuntimeError, match="heads of another model"):
        export(config, packed, "")
    with pytest.raises(ConfigError, match=r"expected model\.masked_lora=true"):
        export(configured(tmp_path, "model.masked_lora=false"), packed, "")


def test_widths_that_int4_cannot_hold_are_found_by_plan(tmp_path):
    from configs.checks.run import model_problems

    config = configured(tmp_path, "model.base_precision=int4")
    (problem,) = model_problems(config, {"hidden_size": 100, "intermediate_size": 256})
    assert problem.startswith("model.base_precision: expected native with layers of width 100 and 256")
    assert model_problems(config, {"hidden_size": 96, "intermediate_size": 256}) == []
    assert model_problems(configured(tmp_path), {"hidden_size": 100}) == []


def test_what_int4_does_to_the_base_is_reported(tmp_path, packed):
    config = configured(tmp_path, "export.precision=int4", "export.parity_prompts=3", "model.quantize_method=nearest")
    metrics = export(config, packed, "")
    report = json.loads((config.run_dir / "quantisation.json").read_text())
    assert (report["num_rows"], report["num_prompts"], report["method"]) == (3, 3, "nearest")
    assert {"native", "int4"} == report["perplexity"].keys() == report["accuracy"].keys()
    # Weights that are a tenth off say something else, but no nonsense.
    assert report["perplexity"]["int4"] != report["perplexity"]["native"]
    assert report["perplexity"]["int4"] == pytest.approx(report["perplexity"]["native"], rel=0.3)
    assert report["worst_relative_l2"][0] == max(layer["relative_l2"] for layer in report["layers"].values())
    assert metrics["export/quantisation/perplexity_int4"] == report["perplexity"]["int4"]
    card = (config.run_dir / "export" / "MODEL_CARD.md").read_text()
    assert f"| perplexity | {report['perplexity']['native']:.3f} | {report['perplexity']['int4']:.3f} |" in card


def test_perplexity_and_greedy_completions_are_those_of_one_row_at_a_time(tiny_model_dir):
    import torch
    from transformers import AutoModelForCausalLM

    from actors.types import TrainRow

    base = AutoModelForCausalLM.from_pretrained(tiny_model_dir, dtype=torch.float32)
    ids = np.array([3, 20, 21, 22, 23], dtype=np.int32)
    mask = np.array([False, False, False, True, True])
    values = {"behaviour_logprobs": np.zeros(5, dtype=np.float32), "advantage": 0.0, "start": 2}
    row = TrainRow(token_ids=ids, loss_mask=mask, **values)
    with torch.no_grad():
        logprobs = base(torch.tensor([ids.tolist()])).logits[0].log_softmax(-1)
    expected = math.exp(-(float(logprobs[2, 22]) + float(logprobs[3, 23])) / 2)
    assert perplexity(base, [row]) == pytest.approx(expected, rel=1e-5)

    prompts = [np.array(tokens) for tokens in ([5, 9, 30], [7], [5, 9, 30, 31, 32, 8])]
    for prompt, found in zip(prompts, greedy(base, prompts, 6, [2]), strict=True):
        tokens = prompt.tolist()
        for token in found:
            with torch.no_grad():
                assert int(base(torch.tensor([tokens])).logits[0, -1].argmax()) == token
            tokens.append(token)


@pytest.mark.parametrize("kind", KINDS)
def test_a_merged_model_is_the_base_with_the_adapter_on_everywhere(tmp_path, tiny_model_dir, kind):
    import torch
    from transformers import AutoModelForCausalLM

    from deploy.export.parity import Reference

    base = make_model(tmp_path / "model", kind, tiny_model_dir)
    packed = make_adapter(base)
    adapters.write_directory(packed, tmp_path / "adapter")
    (tmp_path / "tokenizer").mkdir()
    write_merged(base, tmp_path / "tokenizer", packed, tmp_path / "merged")
    ids = [5, 9, 30, 31, 32, 8]
    reference = Reference(base, tmp_path / "adapter")
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.float32)
    with torch.no_grad():
        found = merged(torch.tensor([ids])).logits[0].log_softmax(-1).numpy()
    assert np.abs(found - reference.logprobs(reference.states(ids, 0))).max() < 1e-4
    assert np.abs(found - reference.logprobs(reference.states(ids, None))).max() > 0.1


def test_a_merged_model_is_part_of_an_export_on_request(tmp_path, packed, tiny_model_dir):
    config = configured(tmp_path, "export.merged=true", "export.parity_prompts=0")
    export(config, packed, "")
    directory = config.run_dir / "export"
    assert {"merged/model.safetensors", "merged/config.json", "merged/tokenizer.json"} <= read_manifest(
        directory
    ).files.keys()
    assert weights_sha256(directory / "merged") != weights_sha256(tiny_model_dir)
