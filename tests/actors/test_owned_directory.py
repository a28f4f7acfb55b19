import signal
import subprocess
import sys

import pytest

from actors.owned_directory import OwnedDirectory

OWNER = """
import sys, time
from pathlib import Path
from actors.owned_directory import OwnedDirectory
directory = OwnedDirectory("adapters-", Path(sys.argv[1]))
(directory.path / "weights").write_bytes(b"1")
print(directory.path.name, flush=True)
time.sleep(600)
"""


@pytest.fixture
def owner(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", OWNER, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    yield process
    process.kill()
    process.wait()


def names(directory):
    return {path.name for path in directory.iterdir()}


def test_what_a_killed_process_left_is_removed_by_the_next_and_what_a_living_one_holds_is_not(tmp_path, owner):
    of_owner = owner.stdout.readline().strip()
    first = OwnedDirectory("adapters-", tmp_path)
    assert names(tmp_path) == {of_owner, first.path.name}
    owner.send_signal(signal.SIGKILL)
    owner.wait()
    second = OwnedDirectory("adapters-", tmp_path)
    assert names(tmp_path) == {first.path.name, second.path.name}
    for directory in (first, second):
        directory.remove()
    assert names(tmp_path) == set()


def test_directories_without_a_lock_and_of_others_names_are_left_alone(tmp_path):
    for name in ("adapters-without", "other"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "weights").write_bytes(b"1")
    OwnedDirectory("adapters-", tmp_path).remove()
    assert names(tmp_path) == {"adapters-without", "other"}
