"""Where learner ranks meet, and who else could listen in."""

import subprocess
import sys

from actors.rendezvous import choose_master

LISTEN = """
import psutil
from actors.rendezvous import choose_master, find_place, join
join("gloo", choose_master([find_place()]), find_place()[0], rank=0, num_ranks=1)
addresses = {c.laddr.ip for c in psutil.Process().net_connections("tcp") if c.status == psutil.CONN_LISTEN}
print(sorted(addresses))
"""


def test_ranks_of_one_node_meet_on_loopback_and_others_at_the_address_of_rank_0s_node():
    assert choose_master([("10.0.0.1", 5001)]) == ("127.0.0.1", 5001)
    assert choose_master([("10.0.0.1", 5001), ("10.0.0.1", 5002)]) == ("127.0.0.1", 5001)
    assert choose_master([("10.0.0.1", 5001), ("10.0.0.2", 5002)]) == ("10.0.0.1", 5001)


def test_a_learner_on_one_node_listens_on_loopback_alone():
    done = subprocess.run([sys.executable, "-c", LISTEN], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "['127.0.0.1']"
