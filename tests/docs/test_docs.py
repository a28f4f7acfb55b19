"""Pages for people say what is true: commands parse, settings exist, links lead somewhere, error lines are real."""

import ast
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from configs.architectures import ARCHITECTURES
from configs.checks.values import RULES
from configs.keys import setting_names
from orchestrator.__main__ import COMMANDS, CONFIGURED, make_parser

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "docs"))
import hooks  # noqa: E402

PAGES = [
    *(
        ROOT / name
        for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "examples/README.md", "rewards/README.md")
    ),
    *sorted((ROOT / "docs").rglob("*.md")),
]
COMMAND = re.compile(r"(?:^|[\s`(])(terse (?!-|COMMAND)[a-z-]+(?: [^`\n&|;#]*)?)", re.M)
SETTING = re.compile(
    r"`((?:run|model|lora|data|budget|sft|rl|reward|rollout|engine|learner|heads|evaluation|scaling|protocols|export|"
    r"cluster|tracking)\.[a-z_.*]+)(?:=[^`]*)?`"
)


def is_known(key, known):
    """Arguments of a function, `reward.verifier_args.tolerance`, have any name."""
    return key in known or bool(
        re.fullmatch(r"[a-z_.]+_args", key.rpartition(".")[0]) and key.rpartition(".")[0] in known
    )


def keys() -> set[str]:
    flat = set(setting_names())
    return (
        flat
        | {key.rpartition(".")[0] for key in flat}
        | {f"data.*.{key.split('.')[2]}" for key in flat if key.startswith("data.")}
    )


def commands_of(path: Path) -> list[str]:
    text = path.read_text().replace("\\\n", " ")
    # Code only: fences and indented lines, and what stands in backticks.
    lines = [line for line in text.split("\n") if line.startswith("    ") or "`" in line]
    return [match[1].strip() for line in lines for match in COMMAND.finditer(line)]


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_commands_parse_and_name_settings_that_exist(path):
    known = keys()
    for command in commands_of(path):
        words = shlex.split(command.replace("…", "x"))
        if words[1] not in COMMANDS or len(words) == 2:
            assert words[1] in COMMANDS or "`" in path.read_text(), command
            continue
        try:
            arguments = make_parser().parse_args(words[1:])
        except SystemExit:
            pytest.fail(f"{path.name}: {command}")
        if arguments.command in CONFIGURED:
            for override in [override for override in arguments.overrides if override != "x"]:
                assert is_known(override.partition("=")[0], known), f"{path.name}: {command}"
            if arguments.config and not Path(arguments.config).suffix and arguments.config != "NAME":
                assert (ROOT / "configs" / f"{arguments.config}.yaml").is_file(), command


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_settings_that_are_named_exist(path):
    known = keys()
    for key in SETTING.findall(path.read_text()):
        assert is_known(key, known) or key.endswith(".py"), f"{path.name}: {key}"


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", "examples/README.md"])
def test_links_outside_the_site_lead_to_files_and_headings(name):
    path = ROOT / name
    for target in re.findall(r"\]\(([^)\s]+)\)", path.read_text()):
        if "://" in target:
            continue
        file, _, anchor = target.partition("#")
        found = (path.parent / file).resolve()
        assert found.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.+)$", found.read_text(), re.M)
            assert anchor in {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}, (
                target
            )


def texts_of_the_code() -> str:
    """Every text in the sources, with `…` for what is filled in."""
    found = []
    for layer in ("configs", "rewards", "actors", "deploy", "orchestrator"):
        for path in (ROOT / layer).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.JoinedStr):
                    parts = [part.value if isinstance(part, ast.Constant) else "…" for part in node.values]
                    found.append("".join(map(str, parts)))
                elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                    found.append(re.sub(r"%[\d.]*[sdf]", "…", node.value))
    return "\n".join(found)


def test_error_lines_that_operators_are_told_of_are_in_the_code():
    code = texts_of_the_code()
    rows = re.findall(r"^\| `([^`]+)` ", (ROOT / "docs" / "operations.md").read_text(), re.M)
    lines = [row for row in rows if " " in row and not row.startswith("configuration refused")]
    assert len(lines) >= 12
    for line in lines:
        parts = [part.strip(" ;:.,)(") for part in line.replace("\\|", "|").split("…")]
        for part in [part for part in parts if len(part) > 3]:
            assert part in code, f"{line}: {part!r}"


def test_the_readme_fits_and_starts_with_what_it_is_for():
    lines = (ROOT / "README.md").read_text().splitlines()
    assert len(lines) <= 120
    assert lines.index("## Two commands") < lines.index("## Your model and your data") < lines.index("## Where to go")


def test_every_setting_says_what_it_is():
    assert hooks.missing_docstrings() == []


def test_a_setting_that_says_what_0_means_takes_0():
    classes = {node.name: node for path in hooks.SCHEMA.glob("*.py") for node in hooks._classes(path)}
    said = {
        f"{section}.{name}"
        for section, node in hooks._sections(classes, "RunConfig", "")
        for name, _, _, text in hooks._fields(node)
        if re.search(r"(?<![\d.])0(?:: | is | are | turns | leaves | uses | tells | keeps )", text)
    }
    checked = said & RULES.keys()
    assert len(checked) >= 25
    assert {key for key in checked if not RULES[key][1](0)} == set()


def test_pages_that_are_made_hold_every_setting_and_every_command():
    settings, commands = hooks.settings_page(), hooks.commands_page()
    for key in keys():
        section, _, name = key.rpartition(".")
        if section and "*" not in key and f"## {key}\n" not in settings:
            assert f"## {section}\n" in settings, key
            assert f"| `{name}` |" in settings, key
    assert "| `kl_beta` | Weight of the KL penalty; 0 turns it off. | number |  | `0.001` |" in settings
    (tokens, *_) = re.findall(r"^\| `max_completion_tokens` \| .* \| integer \| tokens \| `6144` \|$", settings, re.M)
    assert "A completion that reaches it is cut" in tokens
    assert all(f"## {name}\n" in commands for name in COMMANDS)


def test_links_of_a_page_from_elsewhere_are_turned():
    text = hooks.shown_here(ROOT / "tests" / "benchmarks" / "RESULTS.md", "reference/measured.md")
    assert "](../images/" in text
    assert "](../../" not in text


def test_the_site_needs_no_network(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--quiet", "--site-dir", str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    pages = sorted(tmp_path.rglob("*.html"))
    assert len(pages) >= 25
    for page in pages:
        loaded = re.findall(r"<(?:script|link|img)[^>]+(?:src|href)=[\"']?(https?://[^\"' >]+)", page.read_text())
        assert loaded == [], f"{page.name}: {loaded}"


def test_the_table_of_models_was_measured_with_the_pinned_versions_for_every_architecture():
    measured = json.loads(hooks.MODELS_FILE.read_text())
    pins = dict(line.split("==") for line in (ROOT / "constraints-cpu.txt").read_text().splitlines() if "==" in line)
    stale = {name: number for name, number in measured["versions"].items() if pins[name] != number.partition("+")[0]}
    assert stale == {}, "make models-table"
    assert {row["architecture"] for row in measured["models"].values()} == set(ARCHITECTURES)
    assert hooks.models_table().count("\n| ") == len(measured["models"])
    assert hooks.MODELS_MARK in (ROOT / "docs" / "guides" / "models.md").read_text()
