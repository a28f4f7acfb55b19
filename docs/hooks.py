"""Pages that MkDocs makes of the code itself: settings from the schema's docstrings, commands from `--help`.

Other pages are files that have their place elsewhere in the repository; their links are turned to fit.
"""

import ast
import json
import posixpath
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

SCHEMA = ROOT / "configs" / "schema"
ELSEWHERE = {
    "reference/answers.md": "rewards/README.md",
    "reference/measured.md": "tests/benchmarks/RESULTS.md",
    "guides/other-devices.md": "deploy/TARGETS.md",
    "changes.md": "CHANGELOG.md",
}
"""Page → the file that it shows."""
MODELS_FILE = ROOT / "docs" / "reference" / "models.json"
MODELS_MARK = "<!-- the table of models.json -->"
UNITS = {
    "_tokens": "tokens",
    "_s": "seconds",
    "_ms": "milliseconds",
    "_gib": "GiB",
    "_steps": "optimiser steps",
    "_frac": "share, 0 to 1",
    "_share": "share, 0 to 1",
    "_loss": "share, 0 to 1",
    "_gap": "nats",
    "_epochs": "epochs",
}
"""End of a setting's name → its unit."""


def on_files(files: Any, config: Any) -> Any:
    """Add the pages that are made."""
    from mkdocs.structure.files import File

    pages = {"reference/settings.md": settings_page(), "reference/commands.md": commands_page()}
    pages |= {page: shown_here(ROOT / source, page) for page, source in ELSEWHERE.items()}
    for page, text in pages.items():
        files.append(File.generated(config, page, content=text))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Put the table of supported models where the page says."""
    return markdown.replace(MODELS_MARK, models_table()) if MODELS_MARK in markdown else markdown


def models_table() -> str:
    """What `tests/integration/test_architectures.py` measured of each architecture."""
    from configs.architectures import ARCHITECTURES

    measured = json.loads(MODELS_FILE.read_text(encoding="utf-8"))
    lines = [
        "| family | gradient | engine | prompt shared | device: tokens | device: nats | int4: nats |",
        "|---|---|---|---|---|---|---|",
    ]
    for kind, row in measured["models"].items():
        name = row["architecture"]
        family = ARCHITECTURES[name].family + (" with LongRoPE" if kind.endswith("longrope") else "")
        gaps = {key: f"{row[key]:.0e}".replace("-", "\u2011") for key in row if key.endswith("_gap")}
        cells = [
            *(f"{family}<br>`{name}`", gaps["gradient_gap"], gaps["logprob_gap"], f"{row['shared_tokens']}"),
            *(f"{row['device_agreement']:.0%}", gaps["device_gap"], gaps["int4_gap"]),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    versions = ", ".join(f"{name} {number}" for name, number in measured["versions"].items())
    return "\n".join([*lines, "", f"Measured with {versions}."])


def settings_page() -> str:
    """Every setting with type, unit, default and meaning, section by section."""
    classes = {node.name: node for path in sorted(SCHEMA.glob("*.py")) for node in _classes(path)}
    parts = [
        "# Settings\n",
        "Every setting of a run, as `configs/schema/` has it. On the command line a setting is `section.name=value`; in a "
        "YAML file sections are nested. A value in a shipped configuration (`configs/*.yaml`) wins over the default here, "
        "and the command line over both. `terse plan --config NAME` prints what a run would use.\n",
    ]
    for key, node in _sections(classes, "RunConfig", ""):
        rows = list(_rows(node, classes))
        if not rows:
            continue
        parts.append(f"\n## {key}\n\n{_one_line(ast.get_docstring(node) or '')}\n")
        parts.append("\n| setting | meaning | type | unit | default |\n|---|---|---|---|---|")
        parts += ["| " + " | ".join(row) + " |" for row in rows]
        parts.append("")
    return "\n".join(parts)


def missing_docstrings() -> list[str]:
    """Settings that say nothing of themselves, as `Class.name`."""
    classes = {node.name: node for path in sorted(SCHEMA.glob("*.py")) for node in _classes(path)}
    return [
        f"{node.name}.{name}"
        for node in classes.values()
        for name, _, _, text in _fields(node)
        if not text and not _section_of(node, name, classes)
    ]


def commands_page() -> str:
    """`terse --help` and the help of every command."""
    from orchestrator.__main__ import COMMANDS, make_parser

    parser = make_parser()
    choices = next(action for action in parser._actions if hasattr(action, "choices") and action.choices).choices
    assert choices is not None
    parts = [
        "# Commands\n",
        "Each command exits with 0 when it worked, 1 when it failed, 2 for bad usage or configuration, and 130 when it was "
        "interrupted. `--json` prints a last line for programs.\n",
    ]
    for name in COMMANDS:
        text = _plain_help(choices[name])
        parts.append(f"\n## {name}\n\n```text\n{text.rstrip()}\n```\n")
    return "\n".join(parts)


def shown_here(source: Path, page: str) -> str:
    """The file's text with its links turned from its own folder to the page's."""
    here, there = posixpath.dirname(page), source.parent.relative_to(ROOT).as_posix()
    pages = {file: shown for shown, file in ELSEWHERE.items()}

    def turned(match: re.Match[str]) -> str:
        target, hash_mark, anchor = match[2].partition("#")
        if not target or "://" in target:
            return match[0]
        path = posixpath.normpath(posixpath.join(there, target))
        if path in pages or path.startswith("docs/"):
            path = posixpath.relpath(pages.get(path, path.removeprefix("docs/")), here or ".")
            return f"{match[1]}({path}{hash_mark}{anchor})"
        return f"`{path}`" if match[1].startswith("[") else ""

    return re.sub(r"(!?\[[^\]]*\])\(([^)\s]+)\)", turned, source.read_text(encoding="utf-8"))


def _plain_help(parser: Any) -> str:
    parser.formatter_class = lambda prog: __import__("argparse").HelpFormatter(prog, width=100)
    return re.sub(r"\x1b\[[0-9;]*m", "", parser.format_help())


def _classes(path: Path) -> Iterator[ast.ClassDef]:
    return (node for node in ast.parse(path.read_text()).body if isinstance(node, ast.ClassDef))


def _fields(node: ast.ClassDef) -> Iterator[tuple[str, str, str, str]]:
    """Name, type, default and docstring of each setting."""
    for item, following in zip(node.body, [*node.body[1:], None], strict=True):
        if not isinstance(item, ast.AnnAssign) or not isinstance(item.target, ast.Name):
            continue
        text = ""
        if isinstance(following, ast.Expr) and isinstance(following.value, ast.Constant):
            text = _one_line(str(following.value.value))
        default = ast.unparse(item.value) if item.value is not None else ""
        yield item.target.id, ast.unparse(item.annotation), default, text


def _section_of(node: ast.ClassDef, name: str, classes: dict[str, ast.ClassDef]) -> str:
    """The class of a field that is a section; empty for a setting."""
    hint = next(hint for field, hint, _, _ in _fields(node) if field == name)
    return _item(hint) if _item(hint) in classes else ""


def _item(hint: str) -> str:
    """The class of a section, or of those in a list of sections."""
    return hint.removeprefix("tuple[").removesuffix(", ...]")


def _sections(classes: dict[str, ast.ClassDef], name: str, key: str) -> Iterator[tuple[str, ast.ClassDef]]:
    yield key, classes[name]
    for field, hint, _, _ in _fields(classes[name]):
        if _item(hint) in classes:
            yield from _sections(classes, _item(hint), f"{key}.{field}" if key else field)


def _rows(node: ast.ClassDef, classes: dict[str, ast.ClassDef]) -> Iterator[tuple[str, ...]]:
    for name, hint, default, text in _fields(node):
        if _item(hint) in classes:
            continue
        unit = next((unit for end, unit in UNITS.items() if name.endswith(end)), "")
        shown = default.replace("EMBEDDED_MODEL", "'embedded'").replace("ARITHMETIC", "'arithmetic'")
        yield f"`{name}`", _cell(text), _cell(_type(hint)), unit, f"`{_cell(shown)}`"


def _type(hint: str) -> str:
    if hint.startswith("Literal["):
        return "one of " + ", ".join(part.strip(" '") for part in hint[8:-1].split(","))
    if hint.startswith("dict["):
        return "names with values"
    return {"int": "integer", "float": "number", "bool": "true or false", "str": "text"}.get(
        hint, "list of " + {"int": "integers", "float": "numbers", "str": "texts"}.get(hint[6:].split(",")[0], hint)
    )


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _one_line(text: str) -> str:
    return " ".join(text.split())
