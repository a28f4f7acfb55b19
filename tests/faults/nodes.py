"""A Ray cluster of several nodes on this machine, each at a loopback address and with an object store of its own."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
from ray.cluster_utils import Cluster

from tests.integration.test_job_submit import free_port

RAY = Path(sys.executable).with_name("ray")


class Nodes:
    """Nodes that join and are lost. Runs join by `environment`."""

    def __init__(self, num_cpus: int, **head):
        os.environ["PATH"] = f"{RAY.parent}{os.pathsep}{os.environ['PATH']}"  # where jobs find python
        dashboard = free_port()
        self._cluster = Cluster(
            initialize_head=True,
            head_node_args={
                "num_cpus": num_cpus,
                # 127.0.0.1 would be taken for the machine, whose own address is then tried.
                "node_ip_address": "127.0.0.2",
                "include_dashboard": True,
                "dashboard_host": "127.0.0.1",
                "dashboard_port": dashboard,
                "dashboard_agent_listen_port": free_port(),
                **head,
            },
        )
        self.address = self._cluster.address
        self.job_environment = {"RAY_API_SERVER_ADDRESS": f"http://127.0.0.1:{dashboard}"}
        self._num_added = 0

    def add(self, num_cpus: int) -> psutil.Process:
        """One more node; its raylet, which starts everything on the node."""
        self._num_added += 1
        node = self._cluster.add_node(
            num_cpus=num_cpus,
            node_ip_address=f"127.0.0.{self._num_added + 2}",
            dashboard_agent_listen_port=free_port(),
        )
        (raylet,) = node.all_processes["raylet"]
        return psutil.Process(raylet.process.pid)

    def close(self) -> None:
        self._cluster.shutdown()


def kill_node(raylet: psutil.Process) -> list[psutil.Process]:
    """SIGKILL to everything on a node, as when its machine is gone; what that was."""
    family = [raylet, *raylet.children(recursive=True)]
    for process in family:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    return family


@contextmanager
def start_nodes(num_cpus: int, **head) -> Iterator[Nodes]:
    """A cluster whose head node has `num_cpus`; `head` are more of Ray's arguments for it."""
    nodes = Nodes(num_cpus, **head)
    try:
        yield nodes
    finally:
        nodes.close()
