"""The pool of training groups: how many are in flight, by which adapter, and which may be trained on.

Consumes prompts and adapter versions, yields groups. `take` waits for engines and reward actors; `use_adapter`
unblocks new prompts. Staleness is bounded by construction: at most `(max_staleness + 1) × groups_per_step`
groups exist at once, and `take` leaves groups behind only if later steps can still use them in time.
"""

import bisect
from collections import Counter
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import replace
from typing import Any

from actors.types import AdapterRef, DroppedGroup, HardCap, Prompt, Request, RolloutGroup, Sampling, Task
from configs.schema.run import RlSection
from orchestrator.cluster.dispatcher import Dispatcher, Finished
from orchestrator.record.checkpoint import TaskCursor
from rewards.length.state import NO_MEMORY, LengthState

PromptSource = Callable[[int], tuple[Task, Prompt]]
"""Task and prompt of an index in the seeded stream."""


class RolloutPool:
    """Groups in flight and groups ready, for one training run."""

    def __init__(
        self,
        *,
        dispatcher: Dispatcher,
        load_adapter: Callable[[AdapterRef, Any], None],
        prompt_at: PromptSource,
        cursor: TaskCursor,
        sampling: Sampling,
        config: RlSection,
        cap: HardCap | None = None,
        seed_of: Callable[[int, int], int] | None = None,
        show: Callable[[dict[str, float]], None] = lambda depths: None,
    ):
        """`load_adapter(ref, packed)` returns once every engine holds the adapter and has said so. `show` gets
        `queue_depths` while `take` waits. `seed_of(index, version)` seeds the sampling of a group; None leaves it to
        the engine."""
        self._seed_of = seed_of
        self._dispatcher, self._load_adapter, self._prompt_at = dispatcher, load_adapter, prompt_at
        self._sampling, self._config, self._cap, self._show = sampling, config, cap, show
        self._redo = list(cursor.unfinished)
        self._next_index = cursor.next_index
        self._length_state = NO_MEMORY
        self._published: dict[int, AdapterRef] = {}
        self._current: AdapterRef | None = None
        self._pending: dict[int, Request] = {}
        self._pending_versions: Counter[int] = Counter()
        self._ready_versions: Counter[int] = Counter()
        self._ready: list[RolloutGroup] = []
        self._num_consecutive_drops = 0
        self._dropped: list[DroppedGroup] = []

    @property
    def _num_slots(self) -> int:
        return (self._config.max_staleness + 1) * self._config.groups_per_step

    @property
    def cursor(self) -> TaskCursor:
        """Groups in flight or ready count as unfinished: a resumed run makes them again."""
        unfinished = [*self._pending, *(group.group_id for group in self._ready), *self._redo]
        return TaskCursor(next_index=self._next_index, unfinished=tuple(sorted(unfinished)))

    def use_adapter(self, ref: AdapterRef, packed: Any, length_state: LengthState = NO_MEMORY) -> None:
        """Give every engine the adapter, then fill the free slots with prompts for it.

        Until the next adapter, groups are scored against `length_state`.
        """
        self._load_adapter(ref, packed)
        self._length_state = length_state
        self._published[ref.version] = ref
        self._current = ref
        oldest = ref.version - self._config.max_staleness
        self._published = {v: r for v, r in self._published.items() if v >= oldest}
        self._ready_versions, self._pending_versions = +self._ready_versions, +self._pending_versions
        self._fill_slots()

    def take(self, num_groups: int) -> list[RolloutGroup]:
        """The next step's groups: scored, not constant, within the staleness bound. Blocks until they are there.

        Raises RuntimeError after `max_consecutive_drops` drops in a row, or when the engines stall.
        """
        version = self._require_current().version
        while True:
            self._show(self.queue_depths())
            if may_take(
                self._ready_versions,
                self._pending_versions,
                num_groups=num_groups,
                policy_version=version,
                max_staleness=self._config.max_staleness,
            ):
                return self._take_oldest(num_groups)
            if not self._pending:
                raise RuntimeError(
                    f"expected {num_groups} groups in flight, got {len(self._ready)} ready and none pending"
                )
            for finished in self._dispatcher.wait():
                self._receive(finished)

    def _take_oldest(self, num_groups: int) -> list[RolloutGroup]:
        """Ready groups of the oldest versions, in the order of version and stream."""
        order = sorted(self._ready, key=lambda group: (group.policy_version, group.group_id))
        taken = {group.group_id for group in order[:num_groups]}
        self._ready = [group for group in self._ready if group.group_id not in taken]
        self._ready_versions.subtract(group.policy_version for group in order[:num_groups])
        return order[:num_groups]

    def make_again(self, taken: Sequence[RolloutGroup], lost: Container[int]) -> None:
        """Take groups back: those with ids in `lost`, whose completions are gone, are made again, the others are ready."""
        for group in taken:
            if group.group_id in lost:
                self._submit(group.group_id)
            else:
                self._keep(group)

    def queue_depths(self) -> dict[str, float]:
        """How many groups are where, of how many slots."""
        return {
            "rollout/queue_generating": float(self._dispatcher.num_in("generate")),
            "rollout/queue_scoring": float(self._dispatcher.num_in("score")),
            "rollout/queue_ready": float(len(self._ready)),
            "rollout/slots": float(self._num_slots),
        }

    def describe_waiting(self) -> str:
        """`9 of 16 groups ready, 2 dropped; 5 groups in generate (oldest 41 s), 2 in score (oldest 2 s)`."""
        counts = f"{len(self._ready)} of {self._num_slots} groups ready, {len(self._dropped)} dropped"
        return f"{counts}; {self._dispatcher.describe_waiting()}"

    def pop_dropped(self) -> list[DroppedGroup]:
        """Groups dropped since the last call, in the order of the stream."""
        dropped, self._dropped = self._dropped, []
        return sorted(dropped, key=lambda drop: drop.group_id)

    def _receive(self, finished: Finished) -> None:
        request = finished.request
        group = RolloutGroup(
            group_id=request.request_id,
            prompt=request.prompt,
            rollouts=finished.rollouts,
            completions=finished.completions,
            source=request.task.source,
        )
        del self._pending[request.request_id]
        self._pending_versions[request.version] -= 1
        check_stamps(group, self._published[request.version])
        if not group.is_constant:
            self._num_consecutive_drops = 0
            self._keep(group)
            return
        self._dropped.append(
            DroppedGroup(
                group_id=group.group_id,
                reason="constant",
                prompt=group.prompt,
                rollouts=group.rollouts,
                source=group.source,
            )
        )
        self._num_consecutive_drops += 1
        if self._num_consecutive_drops >= self._config.max_consecutive_drops:
            outcomes = Counter(str(rollout.reward.outcome) for rollout in group.rollouts)
            raise RuntimeError(
                f"starved: {self._num_consecutive_drops} groups in a row had equal rewards "
                f"(rl.max_consecutive_drops); the last one: reward {group.rewards[0]:.3f}, outcomes {dict(outcomes)}. "
                "Tasks too hard or too easy, or budgets out of reach?"
            )
        self._fill_slots()

    def _keep(self, group: RolloutGroup) -> None:
        # In the order of the stream, not of finishing: what is trained on together adds up to the same bits.
        bisect.insort(self._ready, group, key=lambda ready: ready.group_id)
        self._ready_versions[group.policy_version] += 1

    def _fill_slots(self) -> None:
        while len(self._pending) + len(self._ready) < self._num_slots:
            self._submit(self._next_prompt_index())

    def _submit(self, index: int) -> None:
        """Have the group of this prompt made by the current adapter."""
        version = self._require_current().version
        task, prompt = self._prompt_at(index)
        request = Request(
            request_id=index,
            task=task,
            prompt=prompt,
            n=self._config.group_size,
            sampling=self._sampling_of(index, version),
            version=version,
            cap=self._cap,
            step=version,
            length_state=self._length_state.for_task(task.task_id),
        )
        self._pending[index] = request
        self._pending_versions[version] += 1
        self._dispatcher.submit(request)

    def _sampling_of(self, index: int, version: int) -> Sampling:
        return self._sampling if self._seed_of is None else replace(self._sampling, seed=self._seed_of(index, version))

    def _next_prompt_index(self) -> int:
        if self._redo:
            return self._redo.pop(0)
        self._next_index += 1
        return self._next_index - 1

    def _require_current(self) -> AdapterRef:
        if self._current is None:
            raise RuntimeError("no adapter published yet: call use_adapter first")
        return self._current


def check_stamps(group: RolloutGroup, expected: AdapterRef) -> None:
    """Refuse a group that another adapter than the one asked for has sampled."""
    for rollout in group.rollouts:
        got = (rollout.policy_version, rollout.adapter_sha256)
        if got != (expected.version, expected.sha256):
            raise RuntimeError(
                f"group {group.group_id}: expected completions by adapter version {expected.version} "
                f"({expected.sha256[:12]}), got version {got[0]} ({got[1][:12] or 'no adapter'})"
            )


def may_take(
    ready_versions: Mapping[int, int],
    pending_versions: Mapping[int, int],
    *,
    num_groups: int,
    policy_version: int,
    max_staleness: int,
) -> bool:
    """Whether to train on `num_groups` ready groups now, the oldest version first, or better wait; groups are counted by version.

    It is safe to go on when what stays behind can be trained on before it is too stale: of the groups that
    expire within j more steps, at most `j · num_groups` may be left. With `max_staleness=0` nothing may stay.

    Example: two per step, staleness 1, learner at 5; ready `{4: 1, 5: 2}`, pending `{4: 1}` → no (the pending group
    of version 4 expires now); pending `{5: 1}` → yes.
    """
    if sum(ready_versions.values()) < num_groups:
        return False
    left, to_take = Counter(pending_versions), num_groups
    for version in sorted(ready_versions):
        taken = min(to_take, ready_versions[version])
        to_take -= taken
        left[version] += ready_versions[version] - taken
    for num_steps in range(max_staleness + 1):
        last = policy_version - max_staleness + num_steps
        if sum(count for version, count in left.items() if version <= last) > num_steps * num_groups:
            return False
    return True
