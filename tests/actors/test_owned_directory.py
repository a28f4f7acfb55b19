import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from actors.owned_directory import OwnedDirectory, children_shared_memory

OWNER = """
import sys, time
from pathlib import Path
from actors.owned_directory import OwnedDirectory
directory = OwnedDirectory("adapters-", Path(sys.argv[1]))
(directory.path / "weights").write_bytes(b"1")
directory.adopt([sys.argv[2]])
print(directory.path.name, flush=True)
time.sleep(600)
"""


@pytest.fixture
def owner(tmp_path):
    (tmp_path / "root").mkdir()
    (tmp_path / "adopted").write_bytes(b"1")
    command = [sys.executable, "-c", OWNER, str(tmp_path / "root"), str(tmp_path / "adopted")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    yield process
    process.kill()
    process.wait()


def names(directory):
    return {path.name for path in directory.iterdir()}


def test_what_a_killed_process_left_is_removed_by_the_next_and_what_a_living_one_holds_is_not(tmp_path, owner):
    of_owner = owner.stdout.readline().strip()
    root, adopted = tmp_path / "root", tmp_path / "adopted"
    first = OwnedDirectory("adapters-", root)
    assert names(root) == {of_owner, first.path.name}
    assert adopted.exists()
    owner.send_signal(signal.SIGKILL)
    owner.wait()
    second = OwnedDirectory("adapters-", root)
    assert names(root) == {first.path.name, second.path.name}
    assert not adopted.exists()
    for directory in (first, second):
        directory.remove()
    assert names(root) == set()


def test_shared_memory_of_children_is_found_and_goes_with_the_directory_when_they_are_killed(tmp_path):
    code = "from multiprocessing.shared_memory import SharedMemory as S; s = S(create=True, size=64); print(s.name, flush=True); input()"
    child = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    path = Path("/dev/shm") / child.stdout.readline().strip()
    directory = OwnedDirectory("adapters-", tmp_path)
    found = children_shared_memory()
    directory.adopt(found)
    # With its resource tracker, which would remove it.
    os.killpg(child.pid, signal.SIGKILL)
    child.wait()
    assert str(path) in found
    assert path.exists()
    directory.remove()
    assert not path.exists()


def test_what_another_user_made_is_left_alone_whatever_it_says_is_to_be_removed(tmp_path, monkeypatch):
    precious = tmp_path / "precious"
    precious.write_bytes(b"1")
    made = OwnedDirectory("adapters-", tmp_path)
    made.adopt([str(precious)])
    os.close(made._lock)  # as if its owner were dead
    with monkeypatch.context() as patched:
        patched.setattr("os.getuid", lambda: made.path.stat().st_uid + 1)
        OwnedDirectory("adapters-", tmp_path)
    assert precious.exists()
    assert made.path.exists()
    OwnedDirectory("adapters-", tmp_path).remove()
    assert not precious.exists()


def test_directories_without_a_lock_and_of_others_names_are_left_alone(tmp_path):
    for name in ("adapters-without", "other"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "weights").write_bytes(b"1")
    OwnedDirectory("adapters-", tmp_path).remove()
    assert names(tmp_path) == {"adapters-without", "other"}
