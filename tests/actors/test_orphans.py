import multiprocessing
import os
import signal
import time

import pytest

from actors import orphans


def sleep_as_an_engine(pipe):
    orphans.register()
    pipe.send(os.getpid())
    time.sleep(60)


def start_an_engine(pipe):
    multiprocessing.get_context("spawn").Process(target=sleep_as_an_engine, args=(pipe,)).start()
    time.sleep(60)


@pytest.mark.parametrize("hangs", [False, True])
def test_a_process_ends_when_the_one_that_started_it_is_killed(hangs):
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    parent = context.Process(target=start_an_engine, args=(theirs,))
    parent.start()
    theirs.close()
    assert ours.poll(60)
    child = ours.recv()
    if hangs:
        os.kill(child, signal.SIGSTOP)
    os.kill(parent.pid, signal.SIGKILL)
    parent.join()
    # The child held the last other end: its death is the end of the file.
    assert ours.poll(20)
    try:
        ours.recv()
    except EOFError:
        return
    raise AssertionError("the child wrote instead of ending")


def test_a_process_that_nobody_started_watches_nobody():
    assert multiprocessing.parent_process() is None
    orphans.register()
