"""Several nodes: each at an address of its own, each with the model before engines start."""

import itertools
import os
import shutil
import subprocess
import sys
from dataclasses import replace

import pytest
import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from actors.hub import local_model
from actors.learner import LearnerRank
from actors.learner_group import LearnerGroup
from actors.types import TrainBatch
from configs.load import load_config
from configs.schema.run import ModelSection
from orchestrator.cluster.cluster import KEEPS_COMPLETIONS, Cluster
from orchestrator.cluster.nodes import fetch_on_nodes
from orchestrator.stages.base_model import resolve_bases
from tests.actors.learner_setup import SFT, make_rows, num_trained, settings_of
from tests.fakes import make_completion, make_group
from tests.faults.nodes import kill_node, start_nodes
from tests.integration.test_job_submit import free_port

pytestmark = pytest.mark.integration

COMMIT = "0123456789abcdef0123456789abcdef01234567"
ADDRESSES = ("10.213.7.1", "10.213.7.2")

RANK = """
import sys
import torch, torch.distributed as dist
from actors.rendezvous import choose_master, join

rank, places = int(sys.argv[1]), [(address, int(sys.argv[2])) for address in sys.argv[3:]]
join("gloo", choose_master(places), places[rank][0], rank=rank, num_ranks=2)
total = torch.tensor([float(rank + 1)])
dist.all_reduce(total)
print(choose_master(places)[0], total.item())
"""


def ip(*arguments: str, check: bool = True) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(["ip", *arguments], check=check, capture_output=True)


@pytest.fixture
def two_namespaces():
    """Names of two network namespaces with a wire between them; nothing else is reachable from either."""
    if os.geteuid() != 0 or not shutil.which("ip"):
        pytest.skip("network namespaces need root and iproute2")
    names = [f"terse{os.getpid()}{end}" for end in "ab"]
    if ip("netns", "add", names[0], check=False).returncode:
        pytest.skip("network namespaces cannot be made here")
    try:
        ip("netns", "add", names[1])
        ip("link", "add", names[0], "netns", names[0], "type", "veth", "peer", "name", names[1], "netns", names[1])
        for name, address in zip(names, ADDRESSES, strict=True):
            ip("-n", name, "addr", "add", f"{address}/24", "dev", name)
            for device in (name, "lo"):
                ip("-n", name, "link", "set", device, "up")
        yield names
    finally:
        for name in names:
            ip("netns", "del", name, check=False)


def test_ranks_in_two_networks_find_each_other(two_namespaces):
    """As on two machines: neither process can reach the other but at its address on the wire."""
    port = str(free_port())
    # A learner of another test in this process may have named an interface, which wins.
    environment = {name: value for name, value in os.environ.items() if not name.endswith("_SOCKET_IFNAME")}
    ranks = [
        subprocess.Popen(
            ["ip", "netns", "exec", name, sys.executable, "-c", RANK, str(rank), port, *ADDRESSES],
            env=environment,
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank, name in enumerate(two_namespaces)
    ]
    answers = [rank.communicate(timeout=120)[0].strip() for rank in ranks]
    assert answers == [f"{ADDRESSES[0]} 3.0"] * 2


@pytest.fixture
def hub(tmp_path, monkeypatch, tiny_model_dir):
    """A cache of the hub that holds the embedded model as org/tiny, at one commit."""
    snapshot = tmp_path / f"hub/models--org--tiny/snapshots/{COMMIT}"
    shutil.copytree(tiny_model_dir, snapshot)
    refs = tmp_path / "hub/models--org--tiny/refs"
    refs.mkdir()
    (refs / "main").write_text(COMMIT)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return snapshot


def test_actors_get_the_commit_that_the_driver_found(hub):
    bases = resolve_bases(load_config("quickstart", ["model.path=org/tiny"]))
    path, model = bases.actor_path, bases.actor_model
    assert (path, model.revision) == ("org/tiny", COMMIT)
    assert local_model(path, model) == str(hub)


def test_each_node_fetches_before_engines_start_and_one_that_cannot_is_named(ray_cluster, hub):
    nodes = [node["NodeID"] for node in ray.nodes()]
    variables = {name: os.environ[name] for name in ("HF_HUB_CACHE", "HF_HUB_OFFLINE")}
    fetch_on_nodes(nodes, "org/tiny", ModelSection(path="org/tiny", revision=COMMIT), variables, {})
    with pytest.raises(RuntimeError, match=f"model.path org/other: node {nodes[0][:8]} does not get it"):
        fetch_on_nodes(nodes, "org/other", ModelSection(path="org/other"), variables, {})


def test_a_directory_that_only_the_driver_sees_is_told_by_node(ray_cluster, tmp_path):
    (node,) = {node["NodeID"] for node in ray.nodes()}
    with pytest.raises(RuntimeError, match=r"does not get it \(.*expected the directory /nowhere/model on node"):
        fetch_on_nodes([node, node], "/nowhere/model", ModelSection(path="/nowhere/model"), {}, {})
    fetch_on_nodes([node, node], str(tmp_path), ModelSection(path=str(tmp_path)), {}, {})


def test_nodes_have_the_model_before_any_engine_is_made(ray_cluster, hub, monkeypatch):
    order = []
    monkeypatch.setattr(
        "orchestrator.cluster.cluster.fetch_on_nodes", lambda nodes, *_: order.append(f"fetch on {len(nodes)}")
    )
    monkeypatch.setattr(Cluster, "_make_ranks", lambda self: order.append("ranks") or [])
    monkeypatch.setattr(Cluster, "_make_engine_pool", lambda self, *_: order.append("engines"))
    monkeypatch.setattr("orchestrator.cluster.cluster.ActorPool", lambda *_, **__: order.append("reward actors"))
    config = load_config("quickstart", ["model.path=org/tiny"])
    bases = resolve_bases(config)
    cluster = Cluster(config, bases.actor_path, bases.actor_model, lambda event, details: None)
    cluster._reservation.release()
    assert order == ["fetch on 1", "engines", "reward actors", "ranks"]


def test_ranks_on_two_nodes_of_a_cluster_meet_at_the_address_of_rank_0s_node(random_model_dir, fresh_ray):
    with start_nodes(num_cpus=1) as nodes:
        nodes.add(num_cpus=1)
        ray.init(nodes.address, log_to_driver=False)
        by_address = {node["NodeManagerAddress"]: node["NodeID"] for node in ray.nodes() if node["Alive"]}
        assert len(by_address) == 2
        ranks = [
            ray.remote(LearnerRank)
            .options(num_cpus=1, scheduling_strategy=NodeAffinitySchedulingStrategy(by_address[address], soft=False))
            .remote(rank=index, num_ranks=2, **settings_of(random_model_dir))
            for index, address in enumerate(sorted(by_address))
        ]
        places = ray.get([rank.find_place.remote() for rank in ranks])
        assert [address for address, _ in places] == sorted(by_address)
        learner = LearnerGroup(ranks, start_timeout_s=120, call_timeout_s=120)
        learner.connect()
        learner.begin_stage(SFT)
        rows = make_rows()
        update = learner.update(TrainBatch(rows_per_rank=(rows[:5], rows[5:]), num_loss_tokens=num_trained(rows)))
        assert update.policy_version == 1
        ray.shutdown()


class Generating:
    def infer(self, num_tokens):
        return tuple(make_completion(num_tokens=num_tokens) for _ in range(2))


class Holding:
    def __init__(self):
        self.held = {}

    def hold(self, groups, *completions):
        self.held |= {group_id: len(own) for (group_id, _), own in zip(groups, completions, strict=True)}

    def list_held(self):
        return self.held


def test_completions_that_went_with_their_node_are_named_and_the_others_held(fresh_ray):
    """Those of few tokens came to the driver with the answer, as Ray has it: 18 KB are kept where they are, 0.7 KB are not."""
    with start_nodes(num_cpus=2) as nodes:
        raylet = nodes.add(num_cpus=1)
        ray.init(nodes.address, log_to_driver=False)
        (lost_node,) = [node["NodeID"] for node in ray.nodes() if node["NodeManagerAddress"] == "127.0.0.3"]
        (kept_node,) = [node["NodeID"] for node in ray.nodes() if node["NodeManagerAddress"] == "127.0.0.2"]
        engines = [
            ray.remote(Generating)
            .options(
                scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False),
                runtime_env={"env_vars": KEEPS_COMPLETIONS},
            )
            .remote()
            for node in (lost_node, kept_node)
        ]
        rank = (
            ray.remote(Holding)
            .options(scheduling_strategy=NodeAffinitySchedulingStrategy(kept_node, soft=False))
            .remote()
        )
        groups = [
            replace(make_group([0.0, 1.0], group_id), completions=engine.infer.remote(num_tokens))
            for group_id, (engine, num_tokens) in enumerate(itertools.product(engines, (40_000, 40, 1_000)))
        ]
        ray.wait([group.completions for group in groups], num_returns=6, timeout=60, fetch_local=False)
        kill_node(raylet)
        learner = LearnerGroup([rank], start_timeout_s=60, call_timeout_s=120)
        assert learner.hold([groups]) == {0, 2}
        assert ray.get(rank.list_held.remote()) == {1: 2, 3: 2, 4: 2, 5: 2}
        ray.shutdown()


@pytest.fixture
def fresh_ray():
    """This process in no cluster, before and after."""
    if ray.is_initialized():
        ray.shutdown()
    yield
    ray.shutdown()
