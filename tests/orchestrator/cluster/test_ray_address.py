"""A Ray cluster that does not answer is told at once."""

import os
import socket
import subprocess
import sys

import pytest

from configs.errors import UserError
from orchestrator.cluster.ray_address import check_ray_address, names_cluster


def test_an_address_that_does_not_answer_names_the_setting(monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    with pytest.raises(
        UserError, match=r"^RAY_ADDRESS: expected a Ray cluster at 127\.0\.0\.1:1, which does not answer"
    ):
        check_ray_address("")
    with pytest.raises(UserError, match=r"^cluster\.address: expected a Ray cluster at ray://127\.0\.0\.1:1"):
        check_ray_address("ray://127.0.0.1:1")


@pytest.mark.parametrize("address", ["nowhere", "http://127.0.0.1:1", "127.0.0.1:", "127.0.0.1:70000"])
def test_what_is_no_address_is_refused(address):
    with pytest.raises(UserError, match="expected host:port"):
        check_ray_address(address)


def test_one_that_answers_and_names_that_ray_knows_pass(monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with socket.create_server(("127.0.0.1", 0)) as server:
        check_ray_address(f"127.0.0.1:{server.getsockname()[1]}")
    for name in ("", "auto", "local"):
        check_ray_address(name)


LISTENERS = """
import http.client, os
from orchestrator.cluster.ray_address import prepare_own_cluster
prepare_own_cluster()
from configs.load import load_config
from orchestrator.cluster.cluster import connect
connect(load_config("quickstart"))
import psutil, ray, time

def tells(port):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", "/metrics")
        return b"# TYPE" in connection.getresponse().read()
    except (OSError, http.client.HTTPException):
        return False

ray.get(ray.remote(lambda: 1).remote())
time.sleep(2)
listening = {c.laddr.port: p.name() for p in psutil.Process().children(recursive=True) for c in p.net_connections("tcp") if c.status == "LISTEN"}
assert "gcs_server" in listening.values()
print(os.environ["RAY_AUTH_MODE"], len(os.environ["RAY_AUTH_TOKEN"]), len([port for port in listening if tells(port)]))
"""
METRICS = {"RAY_enable_metrics_collection": "1", "AUTOSCALER_METRIC_PORT": "44217", "DASHBOARD_METRIC_PORT": "44227"}


@pytest.mark.integration
@pytest.mark.parametrize(("environment", "has_metrics"), [({}, False), (METRICS, True)])
def test_a_cluster_of_ones_own_asks_for_a_token_and_shows_no_metrics_unless_told_to(environment, has_metrics):
    names = {"RAY_AUTH_MODE", "RAY_ADDRESS", *METRICS}
    clean = {name: value for name, value in os.environ.items() if name not in names}
    done = subprocess.run(
        [sys.executable, "-c", LISTENERS], capture_output=True, text=True, check=True, env=clean | environment
    )
    mode, length, num_telling = done.stdout.splitlines()[-1].split()
    assert (mode, length, int(num_telling) > 0) == ("token", "64", has_metrics)


def test_who_names_a_cluster_has_it_his_way(monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    assert not names_cluster("")
    assert not names_cluster("local")
    assert names_cluster("10.0.0.1:6379")
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    assert names_cluster("")
