"""The learner as the driver sees it: one call here is the same call on every rank."""

import math
import time
from collections.abc import Callable, Sequence
from typing import Any

import ray

from actors.pickled import Pickled
from actors.rendezvous import choose_master
from actors.types import AdapterRef, RolloutGroup, StageSpec, TrainBatch, UpdateResult

LOST_ACTOR = (ray.exceptions.RayActorError, ray.exceptions.NodeDiedError, ray.exceptions.OutOfMemoryError)
"""What a call raises when the actor's process is gone; the last one when Ray took it because a node ran out of memory."""
HELD_PER_CALL = 32
"""Groups that a rank fetches in one call: one that is lost fails the call for all of them."""


def is_lost_object(error: BaseException) -> bool:
    """What a call was to work on is gone."""
    if isinstance(error, ray.exceptions.RayTaskError):
        return isinstance(error.cause, ray.exceptions.ObjectLostError)
    return isinstance(error, ray.exceptions.ObjectLostError)


class LearnerLost(RuntimeError):
    """A rank is gone or silent: only new ranks and the last checkpoint help."""


class LearnerGroup:
    """Drives the ranks, Ray actors of `actors.learner_actor.LearnerActor`, in step.

    A call returns when every rank has answered. The first exception of a rank is raised at once, with its
    type, its cause and a note that names the rank; the other ranks may then wait in a collective for good, so
    the group is of no more use. `LearnerLost` when a rank is dead, or has not answered by the timeout.
    """

    def __init__(self, ranks: list[Any], *, start_timeout_s: float, call_timeout_s: float) -> None:
        """`ranks` are actor handles in rank order; `start_timeout_s` is for `connect` and `begin_stage`."""
        self._ranks = ranks
        self._start_timeout_s = start_timeout_s
        self._call_timeout_s = call_timeout_s

    def connect(self) -> None:
        """Make the ranks one process group, at an address of rank 0's node."""
        address, port = choose_master(self._call_all("find_place", timeout_s=self._start_timeout_s))
        self._call_all("connect", address, port, timeout_s=self._start_timeout_s)

    def begin_stage(self, stage: StageSpec) -> None:
        self._call_all("begin_stage", ray.put(stage), timeout_s=self._start_timeout_s)

    def update(self, batch: TrainBatch) -> UpdateResult:
        """One optimiser step. Raises ValueError when the batch is not sharded for this many ranks, RuntimeError
        when the ranks disagree about what they did."""
        if len(batch.rows_per_rank) != len(self._ranks):
            raise ValueError(f"rows_per_rank: expected {len(self._ranks)} shards, got {len(batch.rows_per_rank)}")
        refs = [
            rank.update.remote(rows, batch.num_loss_tokens, batch.kl_beta)
            for rank, rows in zip(self._ranks, batch.rows_per_rank, strict=True)
        ]
        first, *others = self._wait("update", refs, self._call_timeout_s)
        for rank, other in enumerate(others, start=1):
            check_agreement(first, other, rank)
        return first

    def hold(self, groups_per_rank: Sequence[Sequence[RolloutGroup]]) -> set[int]:
        """Have every rank fetch the completions of its groups; ids of the groups whose completions are lost.

        What is lost is found here, where no rank waits for another.
        """
        calls = [
            (rank, groups[at : at + HELD_PER_CALL])
            for rank, groups in enumerate(groups_per_rank)
            for at in range(0, len(groups), HELD_PER_CALL)
        ]
        failed = self._hold(calls)
        one_by_one = self._hold([(rank, [group]) for rank, groups in failed for group in groups])
        return {group.group_id for _, (group,) in one_by_one}

    def _hold(self, calls: list[tuple[int, Sequence[RolloutGroup]]]) -> list[tuple[int, Sequence[RolloutGroup]]]:
        """Those that failed because something was lost."""
        refs = [
            self._ranks[rank].hold.remote(
                Pickled([(group.group_id, group.prompt) for group in groups]), *[group.completions for group in groups]
            )
            for rank, groups in calls
        ]
        ranks = [rank for rank, _ in calls]
        results = self._wait("hold", refs, self._call_timeout_s, ranks, is_result=is_lost_object)
        return [call for call, result in zip(calls, results, strict=True) if result is not None]

    def sequence_kls(self, batch: TrainBatch, adapter: str, estimator: str) -> list[list[float]]:
        """Per rank and row, KL of the trained tokens from `reference` or `base`, in nats over the whole row."""
        refs = [
            rank.sequence_kls.remote(rows, adapter, estimator)
            for rank, rows in zip(self._ranks, batch.rows_per_rank, strict=True)
        ]
        return self._wait("sequence_kls", refs, self._call_timeout_s)

    def publish(self) -> tuple[AdapterRef, ray.ObjectRef]:
        """The policy adapter; its bytes stay in the object store of rank 0's node."""
        pairs = [rank.publish.options(num_returns=2).remote() for rank in self._ranks]
        first, *_ = self._wait("publish", [adapter for adapter, _ in pairs], self._call_timeout_s)
        return first, pairs[0][1]

    def save_state(self) -> bytes:
        return self._call_all("save_state", timeout_s=self._call_timeout_s)[0]

    def load_state(self, blob: bytes) -> None:
        self._call_all("load_state", ray.put(blob), timeout_s=self._start_timeout_s)

    def release_memory(self) -> None:
        """Have every rank give back what it does not hold tensors in."""
        self._call_all("release_memory", timeout_s=self._call_timeout_s)

    def close(self) -> None:
        """Have every rank leave the process group."""
        self._call_all("close", timeout_s=self._call_timeout_s)

    def _call_all(self, method: str, *args: Any, timeout_s: float) -> list[Any]:
        return self._wait(method, [getattr(rank, method).remote(*args) for rank in self._ranks], timeout_s)

    def _wait(
        self,
        method: str,
        refs: list[ray.ObjectRef],
        timeout_s: float,
        ranks: Sequence[int] | None = None,
        is_result: Callable[[Exception], bool] = lambda error: False,
    ) -> list[Any]:
        """Results in the order of calls, which are one a rank unless `ranks` says whose they are. Takes each as it comes: a rank
        that failed leaves the others hanging. An error that `is_result` comes in place of its result."""
        deadline_s = time.monotonic() + timeout_s
        ranks = range(len(refs)) if ranks is None else ranks
        pending: dict[ray.ObjectRef, int] = dict(zip(refs, range(len(refs)), strict=True))
        results: list[Any] = [None] * len(refs)
        while pending:
            ready, _ = ray.wait(list(pending), num_returns=1, timeout=max(0.0, deadline_s - time.monotonic()))
            if not ready:
                late = ", ".join(map(str, sorted({ranks[place] for place in pending.values()})))
                raise LearnerLost(
                    f"learner {method}: expected an answer within {timeout_s:.0f} s, rank {late} gave none"
                )
            place = pending.pop(ready[0])
            rank = ranks[place]
            try:
                results[place] = ray.get(ready[0])
            except LOST_ACTOR as error:
                # Ray tells it in a dozen lines, the cause in the last one.
                cause = str(error).strip().splitlines()[-1].strip()
                raise LearnerLost(f"learner rank {rank} was lost in {method}: {cause}") from error
            except Exception as error:
                if is_result(error):
                    results[place] = error
                    continue
                error.add_note(f"in {method} of learner rank {rank}")
                raise
        return results


def check_agreement(first: UpdateResult, other: UpdateResult, rank: int) -> None:
    """Raises RuntimeError when two ranks report different versions or metrics of one step."""
    if first.policy_version != other.policy_version:
        raise RuntimeError(f"policy version: rank 0 has {first.policy_version}, rank {rank} has {other.policy_version}")
    for name, value in first.metrics.items():
        if not math.isclose(value, other.metrics[name], rel_tol=1e-5, abs_tol=1e-8):
            raise RuntimeError(f"{name}: rank 0 has {value}, rank {rank} has {other.metrics[name]}")
