"""A driver that is killed between any two operations on files, and goes on, leaves what an undisturbed one leaves.

The kill is real: a forked process ends itself, with no clean-up, at the n-th such operation, which Python's audit
events count.
"""

import os
import sys

import pytest

from actors import files
from configs.errors import UserError
from orchestrator.record import checkpoint, ledger, run_files
from orchestrator.record.checkpoint import KeepRule, TaskCursor
from tests.fakes import make_group, make_sample_rows
from tests.orchestrator.record.test_checkpoint import make_checkpoint
from tests.orchestrator.record.test_metrics import make_record

NUM_STEPS, CHECKPOINT_EVERY = 5, 2
KILLED = 9
NEVER = 10**9


def drive(run_dir):
    """What the driver writes in a stage and its evaluation, in its order; every value follows from the step."""
    run_dir.mkdir(exist_ok=True)
    with run_files.sole_writer(run_dir):
        files.remove_temporaries(run_dir)
        run_files.write_text(run_dir / "config.yaml", "run: {}\n")
        saved, _ = checkpoint.load_latest(run_dir / "rl")
        first = saved.state.step if saved else 0
        run_files.forget_steps_after(run_dir, "rl", first)
        for step in range(first + 1, NUM_STEPS + 1):
            ledger.append(run_dir, step, [make_group([0.0, 1.0], step)], [], TaskCursor(next_index=step + 1))
            run_files.append_metrics(run_dir, "rl", step, {"reward/mean": step / 7})
            if step % CHECKPOINT_EVERY == 0 or step == NUM_STEPS:
                run_files.write_samples(
                    run_dir, step, [make_group([0.0, step / 7])], lambda found: found, lambda prompt: "1+1=?"
                )
                checkpoint.save(run_dir / "rl", make_checkpoint(step), KeepRule())
        records = [make_record("a", [3, 4], [True, False])]
        if run_files.read_records(run_dir, "rl") != records:
            run_files.write_evaluation(run_dir, "rl", records, make_sample_rows([make_group([1.0, 0.0])], "1+1=?"))


def drive_and_die(run_dir, at_operation):
    """Exit status of a process that drives and is killed at this operation: 0 when it was done before."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    num_operations = 0

    def die_in_time(event, arguments):
        nonlocal num_operations
        if event == "open" or event.startswith(("os.", "shutil.")):
            num_operations += 1
            if num_operations == at_operation:
                os._exit(KILLED)

    status = 1
    try:
        sys.addaudithook(die_in_time)
        drive(run_dir)
        status = 0
    finally:
        os._exit(status)


def contents(run_dir):
    return {path.relative_to(run_dir): path.read_bytes() for path in run_dir.rglob("*") if path.is_file()}


def is_outdated(path):
    return path.parts[:2] == ("rl", f"step_{CHECKPOINT_EVERY:06d}")


@pytest.mark.parametrize("first", range(4))
def test_a_killed_driver_goes_on_to_the_same_files(tmp_path, first):
    undisturbed = tmp_path / "undisturbed"
    drive(undisturbed)
    expected = contents(undisturbed)
    assert len(expected) > 12
    num_kills = 0
    for at_operation in range(1 + first, NEVER, 4):
        run_dir = tmp_path / str(at_operation)
        status = drive_and_die(run_dir, at_operation)
        if status == 0:
            break
        assert status == KILLED
        num_kills += 1
        # Killed once more on its way back, then left alone.
        drive_and_die(run_dir, 10)
        drive(run_dir)
        # Whoever is killed before it has removed an outdated checkpoint leaves it there until the next one.
        found = {path: data for path, data in contents(run_dir).items() if path in expected or not is_outdated(path)}
        assert found == expected, f"killed at operation {at_operation}"
    assert num_kills > 20


def test_two_processes_do_not_share_a_run_directory(tmp_path):
    with (
        run_files.sole_writer(tmp_path),
        pytest.raises(UserError, match="another process is running in this directory"),
        run_files.sole_writer(tmp_path),
    ):
        pass
    with run_files.sole_writer(tmp_path):
        pass
