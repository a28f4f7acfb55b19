"""A disk that takes no more: the run ends clearly, and what it had saved is good. A driver that is killed, its disk lost: there is a copy."""

import resource
import shutil
import time

import psutil
import pytest

from orchestrator import checkpoint
from tests.faults.small_run import is_gone

pytestmark = [pytest.mark.faults, pytest.mark.timeout(600)]

LEARNER_BYTES = 1_687_464
"""Of the learner's file in a checkpoint; every other file of such a run is smaller than `LIMIT_BYTES`."""
LIMIT_BYTES = 1_500_000


def test_a_checkpoint_that_cannot_be_written_ends_the_run_and_the_one_before_is_good(start_rl):
    run = start_rl()
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
    again = start_rl()
    assert again.finish() == 0, again.log
    again.check_ledger()


def test_a_killed_driver_leaves_nothing_behind_and_without_its_disk_the_next_call_goes_on_from_the_mirror(
    start_rl, tmp_path
):
    mirror = f"run.mirror=file://{tmp_path}/copy"
    run = start_rl(mirror)
    run.wait_for_line("rl step 5/8")
    # Ray's own two agents of a node hold nothing, and take more than a minute to see that it is gone.
    family = [process for process in run.processes() if process not in run.find("agent")]
    run.process.kill()
    run.process.wait()
    killed_s = time.monotonic()
    while not all(map(is_gone, family)) and time.monotonic() < killed_s + 60:
        time.sleep(0.1)
    assert [process.pid for process in family if not is_gone(process)] == []
    gone_s = time.monotonic()
    shutil.rmtree(run.dir)
    (tmp_path / "mlflow.db").unlink()
    again = start_rl(mirror)
    next_s = again.wait_for_line("rl step 5/8")
    print(f"\n| driver | all else gone after {gone_s - killed_s:.1f} s | {next_s - gone_s:.1f} after the next call |")
    assert again.finish() == 0, again.log
    assert "fetching" in again.log
    assert "rl step 4/8" not in again.log
    assert [row["step"] for row in again.events("resumed")] == [4]
    again.check_ledger()
    assert (tmp_path / "copy/small/rl/step_000008/manifest.json").is_file()
