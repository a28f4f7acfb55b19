"""Engines and reward actors that fail as they are told, for a real Ray."""

import os
import signal
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import ray

from actors.engine_log import EngineLost
from actors.reward import summarise
from actors.scaling import group_answers
from orchestrator.cluster.actor_pool import ActorPool
from orchestrator.cluster.engines import EnginePool
from rewards.base import Outcome, RewardResult
from tests.fakes import make_completion, make_inference

CONCURRENCY = {"heartbeat": 1}


def place_in_memory(packed):
    """Device, inode and offset of the file that these bytes are mapped from: the same place for processes that share them.
    None when they are in memory of this process alone."""
    address = np.frombuffer(packed, dtype=np.uint8).ctypes.data
    for line in Path("/proc/self/maps").read_text().splitlines():
        span, _, offset, device, inode, *_ = line.split()
        begin, end = (int(bound, 16) for bound in span.split("-"))
        if begin <= address < end:
            return None if inode == "0" else (device, inode, int(offset, 16) + address - begin)
    raise ValueError(f"{address:x}: not mapped")


class Engine:
    """`fuse`: dies on this call, counted from 1; `lost`: the answer of this call is lost; `is_open`: says nothing until
    it is opened."""

    def __init__(self, behaviour="works", ledger=None, fuse=0, lost=0, is_open=True):
        self.behaviour, self.ledger, self.fuse, self.lost, self.is_open = behaviour, ledger, fuse, lost, is_open
        self.calls, self.brought_up, self.loaded, self.places = 0, [], [], []
        if behaviour == "cannot start":
            raise ValueError("no such model")

    @ray.method(concurrency_group="heartbeat")
    def ping(self):
        if self.behaviour == "hangs":
            time.sleep(600)

    @ray.method(concurrency_group="heartbeat")
    def open(self):
        self.is_open = True

    def bring_up(self, expected, heads, *packed):
        self.brought_up.append(tuple(ref.version for ref in expected))
        self.places += map(place_in_memory, packed)
        return expected, ""

    def infer(self, request, drafts):
        while not self.is_open:
            time.sleep(0.01)
        self.calls += 1
        if self.ledger is not None:
            ray.get(self.ledger.note.remote(request.prompt.task_id))
        if self.behaviour == "fails":
            raise ValueError("no such prompt")
        if self.behaviour == "loses its engine":
            raise EngineLost("vLLM's engine is dead")
        if self.behaviour in ("hangs", "is slow"):
            time.sleep(600)
        if self.behaviour == "dies" or self.calls == self.fuse:
            os.kill(os.getpid(), signal.SIGKILL)
        if self.calls == self.lost:
            raise ray.exceptions.ObjectLostError("00" * 28, None, "")
        if drafts is None:
            drafts = tuple(make_completion(version=request.version) for _ in range(request.n))
        if request.cap is not None:
            drafts = tuple(replace(draft, text=f"{draft.text} cut") for draft in drafts)
        return drafts, make_inference(request.mode)

    @ray.method(concurrency_group="heartbeat")
    def list_loaded(self):
        return self.loaded

    def list_places(self):
        return self.places

    def list_brought_up(self):
        return self.brought_up

    @ray.method(concurrency_group="heartbeat")
    def load_adapter(self, expected, packed):
        if self.behaviour == "dies":
            os.kill(os.getpid(), signal.SIGKILL)
        self.loaded.append(expected.version)
        self.places.append(place_in_memory(packed))
        wrong = 1 if self.behaviour == "wrong version" else 0
        return replace(expected, version=expected.version + wrong)


class Scorer:
    def __init__(self, behaviour="works", fuse=0, lost=0):
        self.behaviour, self.fuse, self.lost, self.calls, self.scored = behaviour, fuse, lost, 0, []

    @ray.method(concurrency_group="heartbeat")
    def ping(self):
        pass

    def score_group(self, request, completions):
        self.calls += 1
        if self.behaviour == "dies" or self.calls == self.fuse:
            os.kill(os.getpid(), signal.SIGKILL)
        if self.calls == self.lost:
            raise ray.exceptions.ObjectLostError("00" * 28, None, "")
        self.scored.append(request.task.task_id)
        reward = RewardResult(value=1.0, outcome=Outcome.CORRECT, answer="2")
        return summarise(completions, [reward] * len(completions), request.returns)

    def group_answers(self, answers):
        return [group_answers(one, lambda texts, other: [text == other for text in texts]) for one in answers]

    def list_scored(self):
        return self.scored


@ray.remote
class Ledger:
    """Which prompts were generated, in order."""

    def __init__(self):
        self.task_ids = []

    def note(self, task_id):
        self.task_ids.append(task_id)

    def read(self):
        return self.task_ids


def _maker(cls, behaviours, after, settings):
    """Makes an actor of each behaviour, a name or settings; those that take the place of a lost one behave as `after`."""
    left = dict(enumerate(behaviours))

    def make(index):
        behaviour = left.pop(index, after)
        own = behaviour if isinstance(behaviour, dict) else {"behaviour": behaviour}
        remote = ray.remote(concurrency_groups=CONCURRENCY, num_cpus=0.1)(cls)
        return remote.remote(**settings, **own)

    return make


def make_engines(*behaviours, after="works", ledger=None, role="actor", **how):
    settings = {} if ledger is None else {"ledger": ledger}
    how = {"start_timeout_s": 60, "max_losses": 10, "num_adapters": 2, **how}
    return EnginePool(role, len(behaviours), _maker(Engine, behaviours, after, settings), **how)


def make_scorers(*behaviours):
    make = _maker(Scorer, behaviours, "works", {})
    start = lambda actor: actor.ping.remote()  # noqa: E731
    return ActorPool("reward actor", len(behaviours), make, start, start_timeout_s=60, max_losses=10)
