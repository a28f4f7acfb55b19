"""A run with what the image has: no git, no compiler but g++, no user's home, not root; from `ray job submit` to the report."""

import json
import os
import re
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from tests.integration.test_job_submit import free_port
from tests.integration.test_pipeline import SETTINGS

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

ABSENT = re.compile(r"git.*|make|cmake|ninja|clang.*|rustc|cargo|go|nvcc|conda|uv|pip.*|python.*|docker.*")
"""Programs that this machine may have and the image has not; Python and pip are its own."""


def as_somebody() -> list[str]:
    """A prefix that makes a command run without being root, in a user namespace when this process is root."""
    if os.getuid() != 0:
        return []
    prefix = [shutil.which("unshare") or "", "--user", "--map-user=1000", "--map-group=1000"]
    if not prefix[0] or subprocess.run([*prefix, "true"], capture_output=True, check=False).returncode:
        pytest.skip("this process is root and cannot be anybody else: no user namespaces here")
    return prefix


@pytest.fixture
def image(tmp_path):
    """Environment of a process in the image, and how it calls `ray`; a head node runs."""
    # Sockets lie in it, and their paths may have 107 bytes.
    session = tempfile.TemporaryDirectory(prefix="r", dir="/tmp", ignore_cleanup_errors=True)
    binaries = tmp_path / "bin"
    binaries.mkdir()
    for program in Path("/usr/bin").iterdir():
        if not ABSENT.fullmatch(program.name):
            (binaries / program.name).symlink_to(program)
    assert shutil.which("g++", path=str(binaries))
    assert not shutil.which("git", path=str(binaries))
    for name in ("python", "ray", "terse"):
        (binaries / name).symlink_to(Path(sys.executable).with_name(name))
    port, dashboard = free_port(), free_port()
    environment = {
        **{"PATH": str(binaries), "HOME": "/proc/home", "TERSE_COMMIT": "0123abc", "LANG": "C.UTF-8"},
        **{"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32), "RAY_USAGE_STATS_ENABLED": "0"},
        **{"RAY_API_SERVER_ADDRESS": f"http://127.0.0.1:{dashboard}", "HF_HUB_OFFLINE": "1", "TMPDIR": str(tmp_path)},
        **{"HF_HOME": str(tmp_path / "hub"), "MLFLOW_DISABLE_TELEMETRY": "true", "RAY_worker_niceness": "0"},
    }
    prefix = as_somebody()
    head = subprocess.Popen(
        [
            *(*prefix, str(binaries / "ray"), "start", "--head", "--block", "--num-cpus=4", f"--port={port}"),
            *("--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}", f"--temp-dir={session.name}"),
            f"--dashboard-agent-listen-port={free_port()}",
        ],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    seen = []
    for line in head.stdout:
        seen.append(line)
        if "Ray runtime started" in line:
            break
    else:
        pytest.fail("".join(seen)[-2000:])
    yield environment, [*prefix, str(binaries / "ray")]
    head.terminate()
    head.wait(timeout=60)
    session.cleanup()


def test_a_submitted_run_goes_to_its_report_in_the_image(image, tmp_path):
    environment, ray = image
    command = [*ray, "job", "submit", "--", "terse", "run"]
    command += ["--config", "quickstart", *SETTINGS, f"run.dir={tmp_path}/runs"]
    for _ in range(20):
        done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False)
        # A head node takes submissions a few seconds after it says that it has started.
        if "No available agent" not in done.stderr:
            break
        time.sleep(3)
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    run_dir = tmp_path / "runs" / "small"
    assert (run_dir / "report.html").is_file()
    assert json.loads((run_dir / "summary.json").read_text())["versions"]["commit"] == "0123abc"
