"""What the faults befall: runs that begin RL from one adapter."""

import pytest

from tests.faults.mlflow_server import Server
from tests.faults.small_run import SFT_STEPS, SmallRun


@pytest.fixture(scope="session")
def sft_adapter(tmp_path_factory):
    """Setting that begins RL from an adapter which is right often enough for groups to differ."""
    run = SmallRun(tmp_path_factory.mktemp("sft"), "sft")
    assert run.finish() == 0, run.log
    return f"sft.adapter={run.dir}/sft/step_{SFT_STEPS:06d}"


@pytest.fixture
def start_run(tmp_path):
    """Starts a `SmallRun` in the test's directory, and ends what is left of it."""
    runs = []

    def start(command, *overrides, **options):
        runs.append(SmallRun(tmp_path, command, *overrides, **options))
        return runs[-1]

    yield start
    for run in runs:
        run.close()


@pytest.fixture
def start_rl(start_run, sft_adapter):
    """Starts RL."""
    return lambda *overrides, **options: start_run("train", sft_adapter, *overrides, **options)


@pytest.fixture
def server(tmp_path):
    """An MLflow server, not yet started."""
    server = Server(tmp_path)
    yield server
    server.stop()
