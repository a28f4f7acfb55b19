"""`ray job submit` on a cluster of its own, as the README tells operators to."""

import json
import os
import re
import secrets
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.integration.test_pipeline import ROOT, SETTINGS

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

RAY = Path(sys.executable).with_name("ray")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="module")
def cluster():
    """Environment for the client of a fresh head node on loopback."""
    port, dashboard = free_port(), free_port()
    environment = {
        **os.environ,
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_API_SERVER_ADDRESS": f"http://127.0.0.1:{dashboard}",
        "PATH": f"{RAY.parent}{os.pathsep}{os.environ['PATH']}",
    }
    head = subprocess.Popen(
        [
            *(RAY, "start", "--head", "--block", "--num-cpus=4", "--node-ip-address=127.0.0.1", f"--port={port}"),
            *("--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}"),
            # Fixed by default: another cluster on this machine would hold it.
            f"--dashboard-agent-listen-port={free_port()}",
        ],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    for line in head.stdout:
        if "Ray runtime started" in line:
            break
    yield environment
    head.terminate()
    head.wait(timeout=60)


def submit(environment, *overrides, directory=ROOT) -> subprocess.CompletedProcess:
    command = [RAY, "job", "submit", "--working-dir", ".", "--", "python", "-m", "orchestrator", "run"]
    command += ["--config", "quickstart", *SETTINGS, *overrides]
    for _ in range(20):
        done = subprocess.run(command, cwd=directory, env=environment, capture_output=True, text=True, check=False)
        # A head node takes submissions a few seconds after it says that it has started.
        if "No available agent" not in done.stderr:
            break
        time.sleep(3)
    return done


def test_a_submitted_run_succeeds_and_its_log_shows_progress(cluster, tmp_path):
    done = submit(cluster, f"run.dir={tmp_path}")
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"rl step 4/4: .*reward", done.stdout)
    assert (tmp_path / "small" / "report.html").is_file()


def test_a_failing_run_is_failed_and_ends_with_the_cause(cluster, tmp_path):
    done = submit(cluster, f"run.dir={tmp_path}", "rl.max_consecutive_drops=1", "reward.length=none")
    assert done.returncode != 0
    assert "failed: starved: 1 groups in a row had equal rewards" in "\n".join(done.stdout.splitlines()[-25:])


def test_a_placement_that_cannot_be_had_is_refused_at_once(cluster, tmp_path):
    done = submit(cluster, f"run.dir={tmp_path}", "learner.num_gpus_per_rank=1")
    assert done.returncode != 0
    assert "configuration refused" in done.stdout
    assert "GPU" in done.stdout


OWN = (
    *("data.train.source=own_functions:sums", "data.train.source_args={num_rows: 100, seed: 1}"),
    *("data.evaluation.source=own_functions:sums", "data.evaluation.source_args={num_rows: 8, seed: 2}"),
    *("reward.verifier=own_functions:hostile", "reward.verifier_args.tolerance=0", "reward.deadline_s=2"),
    *("reward.length=own_functions:full_or_part", "reward.length_args.part=0.3"),
    *("rl.loss=own_functions:capped_reinforce", "rl.loss_args.cap=2.0"),
    *("rl.advantage=own_functions:ranks", "rl.advantage_args.scale=2.0"),
)
HOSTILE = """

import os
import time


def hostile(text, reference, *, tolerance):
    case = hash_of(text) % 40
    if case == 0:
        time.sleep(3600)
    if case == 1:
        raise KeyError("a bug")
    if case == 2:
        while True:
            os.fork()
    if case == 3:
        open(f"/proc/{os.getppid()}/environ").read()
    return last_number(text, reference, tolerance=tolerance)


def hash_of(text):
    import zlib

    return zlib.crc32(text.encode())
"""


def test_functions_of_a_directory_outside_the_package_drive_a_submitted_run(cluster, tmp_path):
    """Verifier, length reward, loss, advantage and source; the verifier hangs, raises, forks and spies now and then."""
    directory = tmp_path / "job"
    directory.mkdir()
    (directory / "own_functions.py").write_text((ROOT / "examples" / "my_functions.py").read_text() + HOSTILE)
    done = submit(cluster, f"run.dir={tmp_path}", *OWN, directory=directory)
    assert done.returncode == 0, done.stdout + done.stderr
    run_dir = tmp_path / "small"
    rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    steps = [row for row in rows if row["stage"] == "rl"]
    assert len(steps) == 4
    assert sum(row["reward/error_frac"] for row in steps) > 0
    assert "own_functions:hostile sha256:" in (run_dir / "config.yaml").read_text()
    (directory / "own_functions.py").write_text((directory / "own_functions.py").read_text() + "\n# changed\n")
    done = submit(cluster, f"run.dir={tmp_path}", *OWN, directory=directory)
    assert done.returncode != 0
    assert "run.functions: " in done.stdout
    assert "belongs to another configuration" in done.stdout


def test_a_function_that_the_job_does_not_bring_is_refused_at_once(cluster, tmp_path):
    done = submit(cluster, f"run.dir={tmp_path}", "rl.loss=own_losses:capped")
    assert done.returncode != 0
    assert "rl.loss: expected a module that can be imported, found 'own_losses:capped'" in done.stdout
    assert not (tmp_path / "small").exists()
