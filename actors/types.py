"""Every value that crosses a process boundary: frozen, complete when built, shapes in the docstrings.

A task becomes a prompt, G completions, G rewards, one group, and with other groups one batch:

    Task ─► Prompt ─► Request ─► Completion ×G ─► Rollout ×G ─► RolloutGroup ─► TrainBatch ─► UpdateResult

Tokens stay in the object store until a learner rank makes rows of them: the driver sees rollouts, which are counts and rewards.
An evaluation sends the same requests and gets `Sample`s, rollouts with their text.

Letters: P prompt tokens, T completion tokens, G group size. Token ids are int32, logprobs float32 (natural
log, at the sampling temperature), and index t scores token t.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from rewards.base import RewardResult
from rewards.length.state import NO_MEMORY, LengthState

BASE_VERSION = -1
"""Stands for a policy version where no adapter is on."""
BASE, REASONING, SWITCHED = "base", "reasoning", "switched"
MODES = (BASE, REASONING, SWITCHED)
"""How a request is answered: without the adapter, with it, or as the switcher decides."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """A dataset item.

    Example: `Task(task_id="arithmetic/12", messages=({"role": "user", "content": "37+58-12=?"},),
    reference_answer="83", source="arithmetic", difficulty=2)`
    """

    task_id: str
    messages: tuple[dict[str, str], ...]
    """Chat messages with `role` and `content`, without the assistant's turn."""
    reference_answer: str
    source: str
    labels: tuple[str, ...] = ()
    """What an answer may be, when it is one of a few words or letters; empty: mathematics"""
    difficulty: int = 0
    """As the source grades it (the built-in tasks: number of operations); 0 when it does not."""
    budget_tokens: int | None = None
    """The source's own budget for it; None when it has none and one is drawn."""
    prompt_template: str = ""
    """The source's own way to name the budget; empty: `budget.prompt_template`"""
    verifier: str = ""
    """The source's own verifier; empty: `reward.verifier`"""
    verifier_args: Mapping[str, Any] = field(default_factory=dict)
    fields: Mapping[str, Any] = field(default_factory=dict)
    """Row fields that the verifier is told, as JSON can hold them"""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Prompt:
    """A task as the engine sees it."""

    task_id: str
    token_ids: np.ndarray
    """int32 `[P]`"""
    budget_tokens: int | None
    """The budget named in the prompt and used by the reward; None when the task has none."""
    start: int
    """First position at which the adapter is on; 0 means it acts on the whole sequence."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Completion:
    """What one engine request generated, stamped with the adapter that the engine says it used."""

    token_ids: np.ndarray
    """int32 `[T]`, the end token included when it was generated"""
    behaviour_logprobs: np.ndarray
    """float32 `[T]`, of the sampled tokens; 0 where `forced`"""
    forced: np.ndarray
    """bool `[T]`, tokens we appended: never trained on, never in a ratio"""
    text: str
    finish_reason: str
    """`stop` (end token) or `length` (cut at the limit)"""
    policy_version: int
    """Version of the adapter that sampled; -1 for the base without adapter"""
    adapter_sha256: str
    """Hash of the adapter bytes that sampled; empty for the base"""
    num_thinking_tokens: int
    """Tokens up to and including the close of the thought, where `reward.span` asks for it; else all of them"""

    @property
    def num_tokens(self) -> int:
        return len(self.token_ids)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class HardCap:
    """A limit on what the policy may generate, and how it is made to answer there.

    Example, cap 3, forced text `[8, 9]`, 1 answer token: a completion `[1, 2, 3, 4, 5]` becomes
    `[1, 2, 3] + [8, 9] + [a]`; `[1, 2, end]` stays as it is.
    """

    num_tokens: int
    forced_token_ids: np.ndarray
    """int32 `[F]`, appended where the cap cuts"""
    answer_tokens: int
    """Generated at most, after the forced text"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How to sample. `logprobs` come back at this temperature."""

    temperature: float
    """0 is greedy."""
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    max_tokens: int
    ignore_end: bool = False
    """Go on to `max_tokens` whatever is sampled (measuring)."""
    seed: int | None = None
    """Seed of a request: completion i is sampled with `seed + i`, and nothing is taken from the cache of prompts. In an
    engine that is `deterministic` its tokens and logprobs depend on nothing else. None: sampled as it comes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reads:
    """What to read off the hidden states while a prompt is inferred. With heads loaded, scores are made of it.

    Example: `Reads(chunk_tokens=128, ema_alpha=0.5, verification_prompt="?", completions=True)`: verifier scores only.
    """

    chunk_tokens: int
    """With `ema_alpha`: how a prompt's states are pooled."""
    ema_alpha: float
    verification_prompt: str
    """Appended to a completion before its last state is read."""
    prompt: bool = False
    """Pool the prompt's states, for the switcher."""
    completions: bool = False
    """The last state of each completion, for the verifier."""
    keeps_states: bool = False
    """Bring the states themselves back, for training heads."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Request:
    """Everything needed to complete one prompt and to score the completions, twice if it must be.

    Example: `Request(request_id=7, task=task, prompt=prompt, n=8, sampling=sampling, version=3)` asks for a training
    group by adapter version 3.
    """

    request_id: int
    """The group's place in the stream of training, or the caller's own number"""
    task: Task
    prompt: Prompt
    n: int
    """Completions; 0 only reads the prompt, and nothing is scored"""
    sampling: Sampling
    version: int
    """Adapter of reasoning mode; `BASE_VERSION` is none"""
    mode: str = REASONING
    """One of `MODES`"""
    reads: Reads | None = None
    cap: HardCap | None = None
    returns: Literal["rollouts", "samples"] = "rollouts"
    """Completions scored for training, or with their text, for people to read"""
    step: int = 0
    """RL steps done; with `length_state`, for length rewards that depend on them"""
    length_state: LengthState = NO_MEMORY


@dataclass(frozen=True, slots=True, kw_only=True)
class Rollout:
    """A scored completion: its counts and its reward, without tokens, logprobs and text."""

    num_tokens: int
    """Forced ones included"""
    num_forced_tokens: int
    num_thinking_tokens: int
    """This and those below: as for `Completion`"""
    finish_reason: str
    policy_version: int
    adapter_sha256: str
    reward: RewardResult


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample(Rollout):
    """A rollout as evaluation keeps it, with its text."""

    text: str


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RolloutGroup:
    """The G rollouts of one prompt, all by one policy version."""

    group_id: int
    prompt: Prompt
    rollouts: tuple[Rollout, ...]
    completions: Any
    """Object-store reference of the `Completion`s `[G]`"""
    source: str = ""
    """Label of the task's source"""

    @property
    def policy_version(self) -> int:
        """The oldest version that sampled one of the rollouts."""
        return min(rollout.policy_version for rollout in self.rollouts)

    @property
    def rewards(self) -> tuple[float, ...]:
        return tuple(rollout.reward.value for rollout in self.rollouts)

    @property
    def is_constant(self) -> bool:
        """All rewards equal: no advantage to learn from."""
        return max(self.rewards) - min(self.rewards) < 1e-8


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class DroppedGroup:
    """A group that will not be trained on, as a value with its reason."""

    group_id: int
    reason: str
    """`constant`"""
    prompt: Prompt
    rollouts: tuple[Rollout, ...]
    """What it held: it still counts in the metrics of what was generated."""
    source: str = ""
    """Label of the task's source"""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TrainRow:
    """One sequence for the learner: prompt and completion, `T` tokens in all.

    Example: prompt `[5, 6]`, completion `[7, 8]` → token_ids `[5, 6, 7, 8]`, loss_mask `[0, 0, 1, 1]`.
    """

    token_ids: np.ndarray
    """int32 `[T]`"""
    start: int
    """First position at which the adapter is on."""
    loss_mask: np.ndarray
    """bool `[T]`, tokens trained on; token 0 is never one, nothing predicts it"""
    behaviour_logprobs: np.ndarray
    """float32 `[T]`, 0 outside the loss mask; unused by SFT"""
    advantage: float
    """One per sequence (GRPO); unused by SFT"""

    @property
    def num_tokens(self) -> int:
        return len(self.token_ids)

    @property
    def num_loss_tokens(self) -> int:
        return int(self.loss_mask.sum())

    @property
    def shared(self) -> np.ndarray:
        """int32 `[start]`, what rows of one prompt have in common"""
        return self.token_ids[: self.start]


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupRows:
    """Rows `[n]` that a rank makes of a group whose completions it holds (`actors.rollout_rank`)."""

    group_id: int
    places: tuple[int, ...]
    """Which of the group's completions"""
    advantages: tuple[float, ...]
    are_left_out: tuple[bool, ...]
    """Of which nothing is trained on: completions that were cut, with `rl.overlong_filtering`"""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TrainBatch:
    """One optimiser step's rows, sharded over ranks."""

    rows_per_rank: tuple[tuple[TrainRow | GroupRows, ...], ...]
    """`[num_ranks]` of rows, about equally many tokens each; a rank may have none"""
    num_loss_tokens: int
    """Over all ranks: the loss divides by it, so it does not depend on the sharding."""
    kl_beta: float = 0.0
    """Weight of the KL term in this step's loss."""
    reward_kl: float = 0.0
    """Mean KL of a completion, where it was taken off the rewards instead, in nats."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StageSpec:
    """What the learner trains until the next stage: which loss, from which adapter, on which schedule.

    Example: `StageSpec(kind="sft", num_steps=100, learning_rate=2e-4, warmup_frac=0.1)` starts a fresh adapter.
    """

    kind: Literal["sft", "rl"]
    num_steps: int
    """Length of the learning-rate schedule, in optimiser steps."""
    learning_rate: float
    """At its peak: linear warm-up from 0, then a half cosine down to 0."""
    warmup_frac: float
    """Share of `num_steps` that warms up."""
    weight_decay: float = 0.0
    temperature: float = 1.0
    """Divides the logits: the temperature that rollouts are sampled at."""
    dropout: float = 0.0
    """Dropout of the adapter's input, in training passes only."""
    loss: str = "grpo"
    """RL, with the fields below: see `actors.losses.LossSettings`."""
    loss_args: Mapping[str, Any] = field(default_factory=dict)
    loss_mean: str = "token"
    clip_low: float = 0.2
    clip_high: float = 0.2
    importance_cap: float = 2.0
    sequence_mask_gap: float = 0.0
    entropy_bonus: float = 0.0
    max_completion_tokens: int = 1
    kl_beta: float = 0.0
    """Unless an update names another."""
    kl_estimator: Literal["k1", "k2", "k3"] = "k3"
    reference: Literal["none", "start", "base"] = "start"
    """What RL's KL is measured against: `start`, `start_adapter`, frozen; `base`, the model without adapter."""
    start_adapter: bytes | None = None
    """Packed (`actors.adapters.pack`); None starts a fresh one (A random, B zero: no effect yet)."""
    policy_version: int = 0
    """Version of the policy before the first step."""


@dataclass(frozen=True, slots=True, kw_only=True)
class UpdateResult:
    """What one optimiser step did, the same on every rank."""

    policy_version: int
    """Optimiser steps applied to the policy so far."""
    metrics: dict[str, float]
    """`train/loss`, `train/grad_norm`, `rollout/logprob_gap_mean`, …"""
    logprob_gap: float = 0.0
    """Mean |engine's logprob − learner's| over the step's tokens, in nats; 0 in SFT"""
    kl: float = 0.0
    """Mean KL to the reference, in nats per token; 0 without a reference"""


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterRef:
    """Names one published adapter: which bytes, of which policy version."""

    version: int
    sha256: str
    """Hex digest of the packed adapter (`actors.adapters.pack`)."""
    size_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Inference:
    """How one request was answered, and what the heads say; its completions go their own way."""

    mode: str
    """`base` or `reasoning`, as asked for or as the switcher chose"""
    switcher_score: float | None
    """Probability that the prompt needs reasoning; None when the prompt was not read, or without heads"""
    verifier_scores: tuple[float, ...] | None
    """`[N]`, probabilities that the completions are right; None when they were not read, or without heads"""
    prompt_state: np.ndarray | None
    """float32 `[H]`, where it was to be kept"""
    completion_states: np.ndarray | None
    """float32 `[N, H]`, where they were to be kept"""
    prefill_s: float
    """Pooling the prompt, which prefills it; 0 when it was not read"""
    switch_s: float
    """The switcher's own arithmetic"""
    generate_s: float
    verify_s: float
    """Reading the completions' last states and scoring them"""
