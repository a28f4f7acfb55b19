"""`ray job submit` on a cluster of its own, as the README tells operators to."""

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


def submit(environment, *overrides) -> subprocess.CompletedProcess:
    command = [RAY, "job", "submit", "--working-dir", ".", "--", "python", "-m", "orchestrator", "run"]
    command += ["--config", "quickstart", *SETTINGS, *overrides]
    for _ in range(20):
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
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
