"""Which manifests and which files beside them are refused, each in one line that names the key or the file."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from configs.errors import UserError
from deploy.device.command import main
from deploy.device.runtime import DeviceModel
from deploy.manifest import MANIFEST_FILE, ExportError, Manifest, check_files, read_manifest
from deploy.manifest_rules import NEEDED_FILES, RULES

SHA256 = "0" * 64
FILE = {"sha256": SHA256, "size_bytes": 1}
GOOD = json.loads(
    Manifest(
        architecture="llama",
        precision="int4",
        base_sha256=SHA256,
        files=dict.fromkeys((*NEEDED_FILES, "heads.safetensors"), FILE),
        stop_token_ids=(2, 5),
        forced_answer_token_ids=(),
        answer_tokens=3,
        default_cap=100,
        max_length_tokens=128,
        system_prompt="Reason briefly.",
        budget_prompt_template="{question}\n{budget_tokens:,}",
        budgets_tokens=(12, 30),
        sampling={"temperature": 0, "top_p": 1.0},
        switcher={"threshold": 0.5},
        training={"run_id": "", "run_name": "r", "commit": "c", "versions": {"torch": "2"}},
    ).to_json()
)
ABSENT = object()


def changed(*path_and_value: Any) -> dict[str, Any]:
    """`GOOD` with the last argument at the path of the others, or without what is there."""
    raw = json.loads(json.dumps(GOOD))
    *folders, name, value = path_and_value
    place = raw
    for folder in folders:
        place = place[folder]
    if value is ABSENT:
        del place[name]
    else:
        place[name] = value
    return raw


def refusal(directory: Path, text: str) -> str:
    """What is said of a manifest after its path."""
    path = directory / MANIFEST_FILE
    path.write_text(text)
    with pytest.raises(ExportError) as caught:
        read_manifest(directory)
    message = str(caught.value)
    assert isinstance(caught.value, UserError)
    assert message.startswith(str(path))
    assert "\n" not in message
    assert "expected" in message
    assert "found" in message
    return message.removeprefix(str(path))


def test_a_good_manifest_is_read_as_it_was_written(tmp_path):
    (tmp_path / MANIFEST_FILE).write_text(json.dumps(GOOD))
    manifest = read_manifest(tmp_path)
    assert json.loads(manifest.to_json()) == GOOD
    assert manifest.stop_token_ids == (2, 5)
    without_heads = changed("files", "heads.safetensors", ABSENT)
    del without_heads["switcher"]
    (tmp_path / MANIFEST_FILE).write_text(json.dumps(without_heads))
    assert read_manifest(tmp_path).switcher is None


@pytest.mark.parametrize("key", [key for key in GOOD if key not in ("format_version", "switcher")])
def test_a_key_that_is_struck_out_is_named(tmp_path, key):
    assert refusal(tmp_path, json.dumps(changed(key, ABSENT))).startswith(f", {key}: expected ")


JUNK = (None, True, "384", "", 1.5, -1, [], {}, [None], {"a": 1}, float("nan"), float("inf"), 10**30, "\ud800")
STANDS = {
    "forced_answer_token_ids": ([],),
    "default_cap": (None,),
    "switcher": (None,),
    "training": ({}, {"a": 1}),
    "system_prompt": ("", "384"),
}


@pytest.mark.parametrize("key", sorted(RULES))
def test_a_value_of_another_kind_is_refused_and_its_key_named(tmp_path, key):
    for junk in JUNK:
        if junk not in STANDS.get(key, ()):
            assert refusal(tmp_path, json.dumps(changed(key, junk))).startswith(f", {key}"), junk


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("files", {}), ", files: expected base.gguf, found []"),
        *((("files", name, ABSENT), f", files: expected {name}, found ") for name in NEEDED_FILES),
        (("files", "heads.safetensors", ABSENT), ", files: expected heads.safetensors, since there is a switcher"),
        (("files", "base.gguf", {}), ', files, "base.gguf": expected sha256 and size_bytes, found {}'),
        (("files", "base.gguf", "sha256", "0" * 63), ', files, "base.gguf", sha256: expected 64 hexadecimal digits'),
        (("files", "base.gguf", "size_bytes", "1"), ', files, "base.gguf", size_bytes: expected a number of bytes'),
        (("files", "base.gguf", "size_bytes", -1), ', files, "base.gguf", size_bytes: expected a number of bytes'),
        *(
            (("files", name, FILE), ", files: expected files inside the directory")
            for name in ("..", "", "../x", "/x", "a/./b", "a\\b", "a\nb")
        ),
        (("files", "manifest.json", FILE), ", files: expected no entry for manifest.json itself"),
        (("stop_token_ids", ["5"]), ', stop_token_ids: expected a list of token ids, at least one, found ["5"]'),
        (("stop_token_ids", [-1]), ", stop_token_ids: expected"),
        (("budgets_tokens", []), ", budgets_tokens: expected a list of numbers of tokens, at least one"),
        (("budgets_tokens", [0]), ", budgets_tokens: expected"),
        (
            ("max_length_tokens", "384"),
            ', max_length_tokens: expected a number of tokens, from 2 to 16777216, found "384"',
        ),
        (("max_length_tokens", 10**12), ", max_length_tokens: expected a number of tokens, from 2 to 16777216"),
        (
            ("max_length_tokens", 103),
            ", max_length_tokens: expected more than 103 (default_cap, forced_answer_token_ids",
        ),
        (("default_cap", 0), ", default_cap: expected"),
        (("default_cap", 10**6), ", max_length_tokens: expected more than 1000003"),
        (("answer_tokens", 0), ", answer_tokens: expected a number of tokens, at least 1, found 0"),
        (("sampling", {}), ", sampling: expected temperature from 0 to 1000, top_p above 0 and at most 1"),
        *((("sampling", "temperature", value), ", sampling: expected") for value in (-0.1, 1e30, "0.7", None, True)),
        *((("sampling", "top_p", value), ", sampling: expected") for value in (0, 1.01, "1")),
        (("sampling", "top_k", 1), ", sampling: expected"),
        (("switcher", "threshold", None), ", switcher: expected threshold, a number"),
        (("training", "run_name", 3), ", training: expected"),
        *(
            (("budget_prompt_template", value), ", budget_prompt_template: expected text with {question}")
            for value in (
                "{question} {answer}",
                "{budget_tokens}",
                "{question",
                "{question} {}",
                "{question.__class__}",
            )
        ),
        *(
            (("budget_prompt_template", value), ", budget_prompt_template: expected text with {question}")
            for value in ("{question:>9999999999}", "{question:{budget_tokens}}", "{question:d}", "{question[0]}")
        ),
        (("top_k", 5), ', "top_k": expected no such key in format_version 1, found 5'),
        (("format_version", 2), ": expected format_version 1, found 2"),
        (("format_version", "1"), ': expected format_version 1, found "1"'),
        (("format_version", True), ": expected format_version 1, found true"),
    ],
)
def test_a_value_that_cannot_be_is_refused(tmp_path, change, message):
    assert refusal(tmp_path, json.dumps(changed(*change))).startswith(message)


NO_MANIFESTS = ("", "{", "[]", "null", "3", "{}", "[" * 100_000, '{"a": ' * 900 + "1" + "}" * 900, "9" * 5000)


@pytest.mark.parametrize("text", [*NO_MANIFESTS, json.dumps(GOOD)[:-1] + ', "answer_tokens": 4}'])
def test_what_is_no_manifest_is_refused_in_one_line(tmp_path, text):
    assert refusal(tmp_path, text).startswith(": expected the manifest of an export, found something else (")


def test_bytes_that_are_no_text_are_refused(tmp_path):
    (tmp_path / MANIFEST_FILE).write_bytes(b"\xff\xfe{}")
    with pytest.raises(ExportError, match="expected the manifest of an export, found something else"):
        read_manifest(tmp_path)


@pytest.mark.parametrize(
    "name", ["heads.safetensors", "tokenizer/added_tokens.json", "notes.txt", "adapter/manifest.json"]
)
def test_files_that_are_not_listed_are_refused_wherever_they_lie(tmp_path, plain_export, name):
    directory = shutil.copytree(plain_export, tmp_path / "export")
    check_files(directory, read_manifest(directory))
    (directory / name).write_text("{}")
    with pytest.raises(ExportError, match=f"{re.escape(name)}: expected only files that manifest.json lists"):
        check_files(directory, read_manifest(directory))


def edit(directory: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    path = directory / MANIFEST_FILE
    raw = json.loads(path.read_text())
    change(raw)
    path.write_text(json.dumps(raw))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("tokenizer/chat_template.jinja", "chat_template.jinja: expected only files that manifest.json lists"),
        ("base.gguf", "manifest.json, files: expected base.gguf, found"),
    ],
)
def test_a_file_that_the_manifest_does_not_list_is_never_used(tmp_path, plain_export, capsys, name, message):
    directory = shutil.copytree(plain_export, tmp_path / "export")
    edit(directory, lambda raw: raw["files"].pop(name))
    with (directory / name).open("ab") as file:
        file.write(b"x")
    assert main([str(directory), "--prompt", "1+1=?"]) == 1
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"stop_token_ids": [5, 104]}, "stop_token_ids: expected token ids below 104, found 104"),
        ({"forced_answer_token_ids": [10_000]}, "forced_answer_token_ids: expected token ids below 104, found 10000"),
        (
            {"max_length_tokens": 513},
            r"max_length_tokens: expected at most 512, for which base\.gguf was made, found 513",
        ),
        ({"switcher": {"threshold": 0.25}}, r"switcher: expected threshold 0\.5 of heads\.safetensors"),
    ],
)
def test_values_that_are_not_of_this_base_and_these_heads_are_refused(tmp_path, export_with_heads, changes, message):
    directory = shutil.copytree(export_with_heads, tmp_path / "export")
    edit(directory, lambda raw: raw.update(changes))
    with pytest.raises(ExportError, match=f"manifest.json, {message}"):
        DeviceModel(directory, num_threads=1)
