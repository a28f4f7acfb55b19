"""Every setting of a run: one frozen, keyword-only dataclass per component, a unit per field.

A component receives its own section, never the whole. Sections are never changed after loading, and what
can be derived is a property. `configs.load` builds them from YAML and the command line; `configs.checks`
lists what is wrong with the values, all at once.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

EMBEDDED_MODEL = "embedded"
ARITHMETIC = "arithmetic"


@dataclass(frozen=True, kw_only=True)
class RunSection:
    """What the run is called and where it leaves its files."""

    name: str = "run"
    """Files go to `<dir>/<name>`."""
    dir: str = "runs"
    seed: int = 0
    """Seeds tasks, budgets, sampling and weights."""


@dataclass(frozen=True, kw_only=True)
class ModelSection:
    """The base model."""

    path: str = EMBEDDED_MODEL
    """`embedded`, a Hugging Face model directory, or a hub name."""
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    """Of the base weights, in learner and engine; adapters are trained in fp32."""
    max_length_tokens: int = 8192
    """Prompt and completion together."""
    masked_lora: bool = True
    """The adapter is on from the last prompt token on, in training and in every engine, so base and reasoning share
    the prompt's KV cache. False: an ordinary LoRA, on everywhere."""
    trust_remote_code: bool = False
    """Run Python code that the model directory brings along."""


@dataclass(frozen=True, kw_only=True)
class LoraSection:
    """The reasoning adapter (PEFT LoRA)."""

    rank: int = 16
    alpha: float = 32.0
    """Scale is alpha / rank."""
    dropout: float = 0.0
    """In SFT; RL always trains without dropout, so that ratios mean something."""
    target_modules: tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True, kw_only=True)
class TaskSource:
    """Where tasks come from: the built-in generator, a hub dataset or a local file."""

    source: str = ARITHMETIC
    """`arithmetic`, a path to a .json, .jsonl or .parquet file, or a Hugging Face dataset name."""
    preset: Literal["none", "gsm8k", "math500", "svamp"] = "none"
    """Fills the fields below that are left at their defaults."""
    subset: str = ""
    split: str = "train"
    question_template: str = "{question}"
    """Of row fields, e.g. `{Body} {Question}`."""
    answer_field: str = "answer"
    answer_pattern: str = ""
    """Regular expression with one group, searched in the answer field; the last match counts. Empty: all of it."""
    system_prompt: str = ""
    num_tasks: int = 0
    """Use the first so many rows; 0 is all of them (arithmetic: endless)."""
    difficulties: tuple[int, ...] = (1, 2, 3, 4)
    """Arithmetic only: numbers of operations, equally likely."""
    held_out: bool = False
    """Arithmetic only: draw from the held-out split."""


@dataclass(frozen=True, kw_only=True)
class SftSource:
    """Where SFT conversations come from."""

    source: str = ARITHMETIC
    """As for tasks; `arithmetic` writes traces for its own tasks."""
    preset: Literal["none", "openthoughts3", "mixture_of_thoughts", "gsm8k"] = "none"
    subset: str = ""
    split: str = "train"
    layout: Literal["prompt_completion", "messages"] = "prompt_completion"
    prompt_template: str = "{prompt}"
    """Of row fields; layout `prompt_completion`."""
    completion_template: str = "{completion}"
    """Of row fields; layout `prompt_completion`."""
    messages_field: str = "messages"
    """Layout `messages`: a list of turns, as role/content or from/value; only assistant tokens are trained on."""
    system_prompt: str = ""
    num_rows: int = 0
    """Use the first so many rows; 0 is all of them (arithmetic: one per row that training asks for)."""
    verbosity: tuple[float, ...] = (0.6, 0.8, 1.0)
    """Arithmetic only: probability of each restatement or check, one drawn per trace."""


@dataclass(frozen=True, kw_only=True)
class DataSection:
    """Tasks and conversations of each stage."""

    train: TaskSource = field(default_factory=TaskSource)
    evaluation: TaskSource = field(default_factory=lambda: TaskSource(held_out=True))
    sft: SftSource = field(default_factory=SftSource)


@dataclass(frozen=True, kw_only=True)
class BudgetSection:
    """Token budgets: drawn per task, named in the prompt, used by the length reward."""

    buckets_tokens: tuple[int, ...] = (1000, 3000, 4000, 6000)
    """One is drawn per task from the seeded task stream (`PAPER`: 1K, 3K, 4K, 6K)."""
    per_difficulty_tokens: int = 0
    """Added for each unit of the task's difficulty."""
    prompt_template: str = "{question}\n\nThink for at most {budget_tokens} tokens."
    """How the prompt names the budget."""


@dataclass(frozen=True, kw_only=True)
class SftSection:
    """Supervised fine-tuning of the adapter on reasoning traces."""

    num_steps: int = 100
    rows_per_step: int = 64
    learning_rate: float = 2e-4
    warmup_frac: float = 0.1
    weight_decay: float = 0.0
    checkpoint_every_steps: int = 20


@dataclass(frozen=True, kw_only=True)
class RlSection:
    """Budget-forced RL of the adapter (GRPO)."""

    num_steps: int = 200
    groups_per_step: int = 32
    group_size: int = 8
    """Completions per prompt, G."""
    learning_rate: float = 2e-5
    warmup_frac: float = 0.05
    weight_decay: float = 0.0
    clip_low: float = 0.2
    """The ratio is clipped to [1 - clip_low, 1 + clip_high]."""
    clip_high: float = 0.2
    importance_cap: float = 2.0
    """Truncation of the importance weight between engine and learner logprobs."""
    kl_beta: float = 1e-3
    """Weight of the KL penalty in the loss; 0 turns it off."""
    kl_estimator: Literal["k1", "k2", "k3"] = "k3"
    kl_reference: Literal["start", "base"] = "start"
    """`start`: the adapter that RL started from; `base`: the model without adapter."""
    max_staleness: int = 0
    """Optimiser steps that a group may lie behind the learner; 0 is on-policy."""
    max_consecutive_drops: int = 512
    """Groups dropped in a row before the run gives up."""
    checkpoint_every_steps: int = 10
    evaluate_every_steps: int = 0
    """Held-out evaluation between steps; 0 is only at the end."""


@dataclass(frozen=True, kw_only=True)
class RewardSection:
    """Scoring: answer verification and length reward."""

    length: Literal["soft_barrier", "none"] = "soft_barrier"
    half_width_frac: float = 0.5
    """m of the soft barrier: the ramp runs from (1 - m) B to (1 + m) B."""
    floor: float = 0.0
    """p of the soft barrier: what is left beyond the ramp."""
    deadline_s: float = 5.0
    """Per completion; past it the scoring process is killed."""
    num_actors: int = 1


@dataclass(frozen=True, kw_only=True)
class RolloutSection:
    """Generating completions for training."""

    num_actors: int = 1
    """Engines."""
    max_completion_tokens: int = 6144
    temperature: float = 0.8
    top_p: float = 1.0
    """Must stay 1 in RL: a truncated distribution biases the importance ratios."""
    top_k: int = 0
    """Must stay 0 in RL, for the same reason."""
    min_p: float = 0.0
    """Must stay 0 in RL, for the same reason."""
    max_logprob_gap: float = 0.1
    """Mean |behaviour - learner| logprob gap at staleness 0 above which the run stops, in nats."""
    generate_timeout_s: float = 1800.0
    """A group not generated by then is given up."""


@dataclass(frozen=True, kw_only=True)
class EngineSection:
    """One vLLM engine."""

    num_gpus: int = 1
    """Per engine (tensor parallel); 0 is a CPU engine."""
    num_cpus: float = 1.0
    """Ray's bookkeeping of cores per engine."""
    num_threads: int = 2
    """CPU engines: threads of the arithmetic."""
    max_num_seqs: int = 256
    """Sequences decoded at once."""
    max_batched_tokens: int = 0
    """Tokens computed in one engine step; longer prompts are computed in chunks. 0: vLLM's choice."""
    block_tokens: int = 0
    """Tokens of one KV block, the unit in which prompts are shared. 0: 32 on CPU, vLLM's choice on GPU."""
    num_kv_blocks: int = 0
    """KV blocks, however much memory there is; 0: as many as memory holds."""
    max_lora_rank: int = 16
    """At least the adapter's rank; vLLM takes 1, 8, 16, 32, 64, 128, 256, 320 or 512."""
    gpu_memory_frac: float = 0.85
    kv_cache_gib: float = 2.0
    """CPU engines only."""


@dataclass(frozen=True, kw_only=True)
class LearnerSection:
    """The DeepSpeed learner."""

    num_ranks: int = 1
    num_gpus_per_rank: int = 1
    """0 or 1; 0 trains on the CPU over gloo."""
    num_cpus_per_rank: float = 1.0
    """Ray's bookkeeping of cores per rank."""
    num_threads: int = 2
    """CPU ranks: threads of the arithmetic."""
    zero_stage: int = 0
    """DeepSpeed ZeRO stage, 0 to 3."""
    offload_optimizer: bool = False
    """Keep optimiser state in host memory (ZeRO 1 to 3)."""
    micro_batch_tokens: int = 16384
    """Tokens of one forward pass, padding included."""
    gradient_checkpointing: bool = False
    max_grad_norm: float = 1.0
    beta1: float = 0.9
    beta2: float = 0.999


@dataclass(frozen=True, kw_only=True)
class EvaluationSection:
    """Accuracy and length on held-out tasks."""

    num_tasks: int = 256
    samples_per_task: int = 1
    temperature: float = 0.6
    top_p: float = 1.0
    max_completion_tokens: int = 6144


@dataclass(frozen=True, kw_only=True)
class ClusterSection:
    """The Ray cluster."""

    address: str = ""
    """Empty: join the cluster of this job or RAY_ADDRESS if there is one, else start one here."""
    colocated: bool = False
    """Engines and learner ranks share GPUs, half of Ray's books each; lower `engine.gpu_memory_frac` to match."""
    start_timeout_s: float = 600.0
    """Give up when the placement cannot be had, or an actor has not started, by then."""


@dataclass(frozen=True, kw_only=True)
class TrackingSection:
    """MLflow."""

    uri: str = ""
    """Empty: MLFLOW_TRACKING_URI if set, else an SQLite file in the run's parent directory."""
    experiment: str = "terse"


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """A whole run. `configs/*.yaml` say only what differs from these defaults."""

    run: RunSection = field(default_factory=RunSection)
    model: ModelSection = field(default_factory=ModelSection)
    lora: LoraSection = field(default_factory=LoraSection)
    data: DataSection = field(default_factory=DataSection)
    budget: BudgetSection = field(default_factory=BudgetSection)
    sft: SftSection = field(default_factory=SftSection)
    rl: RlSection = field(default_factory=RlSection)
    reward: RewardSection = field(default_factory=RewardSection)
    rollout: RolloutSection = field(default_factory=RolloutSection)
    engine: EngineSection = field(default_factory=EngineSection)
    learner: LearnerSection = field(default_factory=LearnerSection)
    evaluation: EvaluationSection = field(default_factory=EvaluationSection)
    cluster: ClusterSection = field(default_factory=ClusterSection)
    tracking: TrackingSection = field(default_factory=TrackingSection)

    @property
    def run_dir(self) -> Path:
        return Path(self.run.dir) / self.run.name

    @property
    def num_gpus(self) -> float:
        """GPUs that the placement asks for; a colocated engine or rank takes half of one."""
        engines = self.rollout.num_actors * self.engine.num_gpus
        total = engines + self.learner.num_ranks * self.learner.num_gpus_per_rank
        return total * (0.5 if self.cluster.colocated else 1.0)

    @property
    def num_cpus(self) -> float:
        """CPU cores that the placement asks for; reward actors take a tenth of a core each in Ray's books."""
        engines = self.rollout.num_actors * self.engine.num_cpus
        return engines + self.learner.num_ranks * self.learner.num_cpus_per_rank + 0.1 * self.reward.num_actors

    @property
    def max_prompt_tokens(self) -> int:
        longest = max(self.rollout.max_completion_tokens, self.evaluation.max_completion_tokens)
        return self.model.max_length_tokens - longest
