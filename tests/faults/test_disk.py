"""A disk that is full, a driver that is killed, a disk that is lost: what was saved is good, and the next call goes on."""

import resource
import shutil
import time

import psutil
import pytest

from orchestrator.record import checkpoint
from tests.faults.small_run import is_gone

pytestmark = [pytest.mark.faults, pytest.mark.timeout(600)]

LEARNER_BYTES = 1_687_464
"""Of the learner's file in a checkpoint; every other file of such a run is smaller than `LIMIT_BYTES`."""
LIMIT_BYTES = 1_500_000


def test_a_full_disk_a_killed_driver_and_a_lost_disk_cost_steps_only(start_rl, tmp_path):
    mirror = f"run.mirror=file://{tmp_path}/copy"
    run = start_rl(mirror)
    run.wait_for_line("rl step 3/8")
    # The kernel refuses the rest of a file that is longer (EFBIG), as it would on a full disk (ENOSPC).
    psutil.Process(run.process.pid).rlimit(resource.RLIMIT_FSIZE, (LIMIT_BYTES, LIMIT_BYTES))
    tried_s = run.wait_for_line("rl step 4/8")
    assert run.finish() == 1
    print(f"\n| disk full | run ended after {time.monotonic() - tried_s:.1f} s |")
    assert "step_000004: the checkpoint could not be written: File too large" in run.lines[-1][1]
    assert "there is still step_000002" in run.lines[-1][1]
    saved, damages = checkpoint.load_latest(run.dir / "rl")
    assert (saved.state.step, damages) == (2, [])
    assert len(saved.learner) == LEARNER_BYTES

    second = start_rl(mirror)
    second.wait_for_line("rl step 5/8")
    # Ray's own two agents of a node hold nothing, and take more than a minute to see that it is gone.
    family = [process for process in second.processes() if process not in second.find("agent")]
    second.process.kill()
    second.process.wait()
    killed_s = time.monotonic()
    while not all(map(is_gone, family)) and time.monotonic() < killed_s + 60:
        time.sleep(0.1)
    assert [process.pid for process in family if not is_gone(process)] == []
    gone_s = time.monotonic()
    shutil.rmtree(run.dir)
    (tmp_path / "mlflow.db").unlink()

    third = start_rl(mirror)
    next_s = third.wait_for_line("rl step 5/8")
    print(f"\n| driver | all else gone after {gone_s - killed_s:.1f} s | {next_s - gone_s:.1f} after the next call |")
    assert third.finish() == 0, third.log
    assert "fetching" in third.log
    assert "rl step 4/8" not in third.log
    assert [row["step"] for row in third.events("resumed")] == [2, 4]
    third.check_ledger()
    assert (tmp_path / "copy/small/rl/step_000008/manifest.json").is_file()
