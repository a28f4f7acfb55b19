"""The pins' own rules; that they resolve is `make check-pins`, which asks the package index."""

import pytest

from tests.deploy.cluster.check_pins import misfits, read_pins, requirements, unpinned


def item(name: str, version: str, needs: tuple[str, ...] = (), **about) -> dict:
    return {"metadata": {"name": name, "version": version, "requires_dist": list(needs), **about}}


@pytest.mark.parametrize("extra", ["cpu", "gpu"])
def test_what_the_package_itself_asks_for_is_pinned_within_its_bounds(extra):
    report = {"install": [item("terse-rl", "0.1.0", tuple(requirements(extra)))]}
    pins = read_pins(extra)
    assert unpinned(report, pins) == {"terse-rl"}
    for python in ("3.11", "3.12"):
        assert list(misfits(report, pins, python)) == []


def test_both_sets_have_the_same_versions_of_what_is_in_both():
    cpu, gpu = read_pins("cpu"), read_pins("gpu")
    of_vllm = {name for name in cpu.keys() & gpu.keys() if cpu[name] != gpu[name]}
    # Each build of vLLM, and torch with CUDA, name one version of these.
    assert of_vllm <= {"apache-tvm-ffi", "setuptools", "triton"}


def test_requirements_that_differ_by_version_of_python_are_held_against_the_pins():
    report = {
        "install": [
            item("Some_Engine", "1.0", ('setuptools<81; python_version > "3.11"', 'absent>=1; extra == "docs"')),
            item("old", "2.0", requires_python="<3.12"),
            item("Torch", "2.13.0+cpu"),
            item("user", "1", ("torch==2.13.0+cpu", 'tomli; python_version >= "3.12"')),
        ]
    }
    pins = {"setuptools": "84.2.1", "torch": "2.13.0", "some-engine": "1.0", "user": "1"}
    assert unpinned(report, pins) == {"old"}
    assert list(misfits(report, pins, "3.11")) == []
    assert list(misfits(report, pins, "3.12")) == [
        'Some_Engine 1.0 needs setuptools<81; python_version > "3.11", pinned is 84.2.1',
        "old 2.0 needs Python <3.12",
        'user 1 needs tomli; python_version >= "3.12", which is not pinned',
    ]
