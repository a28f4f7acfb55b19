"""How learner ranks find each other: an address of rank 0's node, and a store that listens on that address alone."""

import os
import socket
from collections.abc import Sequence

import psutil

LOOPBACK = "127.0.0.1"

Place = tuple[str, int]
"""Address of a process's node, and a port that is free there."""


def find_place() -> Place:
    """Address and free port of this process; the address is the one under which its node joined the Ray cluster."""
    from ray.util import get_node_ip_address

    address = get_node_ip_address()
    return address, free_port()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("", 0))
        return probe.getsockname()[1]


def choose_master(places: Sequence[Place]) -> Place:
    """Where the ranks meet, of the places of all ranks in their order: loopback when they are on one node.

    Example: `[("10.0.0.1", 5001), ("10.0.0.2", 5002)]` → `("10.0.0.1", 5001)`.
    """
    addresses = {address for address, _ in places}
    return (LOOPBACK if len(addresses) == 1 else places[0][0]), places[0][1]


def interface_of(address: str) -> str:
    """Name of the network interface that has an address; empty when none here has."""
    for name, addresses in psutil.net_if_addrs().items():
        if any(found.address == address for found in addresses):
            return name
    return ""


def join(backend: str, master: Place, own_address: str, rank: int, num_ranks: int) -> None:
    """Make the process group; returns when all ranks are there. `own_address` is that of this rank's node.

    torch's own store would listen on every address, and gloo and NCCL would tell the others the address that this
    machine's name stands for, which on many is loopback.
    """
    import torch.distributed as dist  # the driver, which chooses the master, needs no torch

    address, port = master
    os.environ.update(MASTER_ADDR=address, MASTER_PORT=str(port), RANK=str(rank), WORLD_SIZE=str(num_ranks))
    os.environ["LOCAL_RANK"] = "0"  # Ray shows a rank only its own GPU
    if interface := interface_of(LOOPBACK if address == LOOPBACK else own_address):
        for name in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
            os.environ.setdefault(name, interface)
    listening = None
    if rank == 0:
        listening = socket.socket()
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((address, port))
        listening.listen(4096)
    store = dist.TCPStore(
        address,
        port,
        num_ranks,
        is_master=rank == 0,
        master_listen_fd=None if listening is None else listening.detach(),
        wait_for_workers=False,
    )
    dist.init_process_group(backend, store=store, rank=rank, world_size=num_ranks)
