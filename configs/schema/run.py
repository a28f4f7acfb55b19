"""Every setting of a run: one frozen, keyword-only dataclass per component, a unit per field.

A component receives its own section, never the whole. Sections are never changed after loading, and what
can be derived is a property. `configs.load` builds them from YAML and the command line; `configs.checks`
lists what is wrong with the values, all at once.
"""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from configs.presets import apply_preset
from configs.schema.data import DataSection, TaskSource
from configs.schema.export import ExportSection
from configs.schema.heads import HeadsSection, ScalingSection
from configs.schema.protocols import ProtocolsSection
from configs.schema.reward import RewardSection
from configs.schema.training import BudgetSection, RlSection, RolloutSection, SftSection

EMBEDDED_MODEL = "embedded"


@dataclass(frozen=True, kw_only=True)
class RunSection:
    """What the run is called and where it leaves its files."""

    name: str = "run"
    """Files go to `<dir>/<name>`."""
    dir: str = "runs"
    """Where run directories lie; absolute on a cluster."""
    mirror: str = ""
    """Address that fsspec knows, e.g. `s3://bucket/runs`: the run directory is copied to `<mirror>/<name>` after each
    checkpoint and at the end, and fetched from there where it is missing. Empty: no copy."""
    seed: int = 0
    """Seeds tasks, budgets, sampling and weights."""
    keep_checkpoints: int = 2
    """The newest so many of each stage stay; more than one, so that a damaged one can be skipped."""
    keep_every_steps: int = 0
    """Checkpoints of every so many steps stay for good; 0: none."""
    functions: tuple[str, ...] = ()
    """Written by Terse: every function of your own that the configuration names, with the SHA-256 of its source file. A run goes
    on with the same files alone."""
    deterministic: bool = False
    """The same run gives the same bits, however its groups were scheduled and wherever it was resumed. Engines then
    generate one sequence at a time: for tests and for finding faults. Needs rl.max_staleness 0."""


@dataclass(frozen=True, kw_only=True)
class ModelSection:
    """The base model."""

    path: str = EMBEDDED_MODEL
    """`embedded`, a Hugging Face model directory, or a hub name."""
    revision: str = ""
    """Branch, tag or commit of a hub name. Empty: the newest; every node gets the commit that the driver found."""
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    """Type of the base weights, in learner and engine; adapters are trained in fp32."""
    base_precision: Literal["native", "int4"] = "native"
    """int4: adapters are trained and sampled over a base whose linear layers lie on the int4 grid that the device file
    holds (group 32, `deploy/export/quantize.py`); it is made once, in the run directory, which every node must see."""
    quantize_method: Literal["nearest", "least_l2"] = "least_l2"
    """How int4 scales are chosen: by the largest weight, or by the least squared error."""
    max_length_tokens: int = 8192
    """Prompt and completion together."""
    masked_lora: bool = True
    """The adapter is on from the last prompt token on, in training and in every engine, so base and reasoning share
    the prompt's KV cache. False: an ordinary LoRA, on everywhere."""
    chat_template_args: dict[str, Any] = field(default_factory=dict)
    """Variables of the model's chat template, such as `enable_thinking: false`. They are written into the template, so that training,
    engines, base and reasoning mode, the export and every tool that reads it render the same prompt."""
    trust_remote_code: bool = False
    """Run Python code that the model directory brings along."""


@dataclass(frozen=True, kw_only=True)
class LoraSection:
    """The reasoning adapter (PEFT LoRA)."""

    rank: int = 16
    """Rank of both matrices."""
    alpha: float = 32.0
    """Scale is alpha / rank."""
    dropout: float = 0.0
    """Dropout in SFT; RL always trains without dropout, so that ratios mean something."""
    target_modules: tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    """Linear layers that get an adapter, by the ends of their names. Where a model has several in one (Phi-3's qkv_proj and
    gate_up_proj), the names of all its parts mean it."""


@dataclass(frozen=True, kw_only=True)
class EngineSection:
    """One vLLM engine."""

    num_gpus: int = 1
    """Per engine (tensor parallel); 0 is a CPU engine."""
    num_cpus: float = 1.0
    """Ray's bookkeeping of cores per engine."""
    num_threads: int = 0
    """CPU engines: threads of the arithmetic. 0: the node's cores, shared with what computes there at the same time: the other
    engines, and with rl.max_staleness above 0 learner ranks too. Whatever the machine, 2 with run.deterministic."""
    max_num_seqs: int = 256
    """Sequences decoded at once."""
    max_batched_tokens: int = 0
    """Tokens computed in one engine step; longer prompts are computed in chunks. 0: 16,384 on a GPU, vLLM's choice on a CPU."""
    block_tokens: int = 0
    """Tokens of one KV block, the unit in which prompts are shared. 0: 32 on CPU, vLLM's choice on GPU."""
    num_kv_blocks: int = 0
    """KV blocks, however much memory there is; 0: as many as memory holds."""
    max_lora_rank: int = 16
    """At least the adapter's rank; vLLM takes 1, 8, 16, 32, 64, 128, 256, 320 or 512."""
    gpu_memory_frac: float = 0.85
    """GPU engines without kv_cache_gib: their share of the memory, weights included."""
    kv_cache_gib: float = 0.0
    """Keys and values of sequences, per GPU. 0: 2 GiB on a CPU, on a GPU what gpu_memory_frac leaves."""


@dataclass(frozen=True, kw_only=True)
class LearnerSection:
    """The DeepSpeed learner."""

    num_ranks: int = 1
    """Processes that train together, each on a share of the rows."""
    num_gpus_per_rank: int = 1
    """0 or 1; 0 trains on the CPU over gloo."""
    num_cpus_per_rank: float = 1.0
    """Ray's bookkeeping of cores per rank."""
    num_threads: int = 0
    """CPU ranks: threads of the arithmetic. 0: as engine.num_threads, with ranks and engines changed round."""
    zero_stage: int = 0
    """DeepSpeed ZeRO stage, 0 to 3."""
    offload_optimizer: bool = False
    """Keep optimiser state in host memory (ZeRO 1 to 3)."""
    micro_batch_tokens: int = 16384
    """Tokens of one micro-batch, a prompt that rows share counted once; a longer row goes alone."""
    gradient_checkpointing: bool = False
    """Compute activations twice instead of keeping them: less memory, more time."""
    call_timeout_s: float = 1800.0
    """A rank that has not answered by then is lost; all ranks start again from the last checkpoint."""
    max_grad_norm: float = 1.0
    """The gradient is scaled down to it."""
    beta1: float = 0.9
    """A setting of AdamW."""
    beta2: float = 0.999
    """A setting of AdamW."""


@dataclass(frozen=True, kw_only=True)
class EvaluationSection:
    """Accuracy and length on held-out tasks."""

    num_actors: int = 0
    """Engines of their own for heads, evaluation and scaling; 0 uses the rollout engines."""
    step: str = "last"
    """Which policy of RL is evaluated: `last`, `best` (rl.keep_best), or the number of a step whose checkpoint is there."""
    num_tasks: int = 256
    """Held-out tasks; a data set that has fewer gives all of its rows."""
    samples_per_task: int = 1
    """Completions of each task."""
    temperature: float = 0.6
    """Sampling temperature; 0 is greedy."""
    top_p: float = 1.0
    """Nucleus that completions are sampled from; 1 is everything."""
    max_completion_tokens: int = 6144
    """A completion that reaches it is cut."""
    caps_tokens: tuple[int, ...] = ()
    """Hard caps to evaluate at as well: each completion is cut there and made to answer."""


@dataclass(frozen=True, kw_only=True)
class ClusterSection:
    """The Ray cluster."""

    address: str = ""
    """Empty: join the cluster of this job or RAY_ADDRESS if there is one, else start one here."""
    colocated: bool = False
    """Engine i and learner rank i share GPU i, by turns: engines sleep, their memory given back, while the learner works.
    Needs engine.kv_cache_gib and rl.max_staleness 0."""
    gpu_memory_gib: float = 0.0
    """Memory of the smallest GPU that the run may get, for `terse plan` and its refusals. 0: the GPUs here count, if no cluster is named."""
    start_timeout_s: float = 600.0
    """Give up when the placement cannot be had, or an actor has not started, by then."""
    heartbeat_timeout_s: float = 60.0
    """An actor that has work and gives no sign of life for so long is replaced."""
    max_actor_losses: int = 100
    """Engines, and reward actors, that are replaced in one run; one more ends it."""
    max_learner_restarts: int = 3
    """Times that lost learner ranks are started again from the stage's last checkpoint."""


@dataclass(frozen=True, kw_only=True)
class SweepSection:
    """How `terse sweep` chooses its trials."""

    method: Literal["grid", "random", "tpe"] = "grid"
    """grid: every combination of the axes' values; random and tpe draw trials, tpe (Bergstra et al. 2011) where earlier ones did
    well. Axes are lists of choices, or ranges: `log(1e-5,1e-2)`, `uniform(0,1)`, `int(4,16)`."""
    num_trials: int = 16
    """Trials that random and tpe draw."""
    objective: Literal["aes", "accuracy"] = "aes"
    """What is searched for, on held-out tasks after RL: the accuracy-efficiency score against what RL began from (arXiv
    2501.12570), or accuracy; completions of more than rl.best_cap_tokens count as wrong."""
    prune: bool = False
    """Stop a trial whose held-out score between steps is below the median of the others at that step. Needs rl.keep_best."""


@dataclass(frozen=True, kw_only=True)
class TrackingSection:
    """MLflow."""

    uri: str = ""
    """Empty: MLFLOW_TRACKING_URI if set, else an SQLite file in the run's parent directory."""
    experiment: str = "terse"
    """Experiment in MLflow."""
    parent_run_id: str = ""
    """MLflow run to nest this run under."""


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
    heads: HeadsSection = field(default_factory=HeadsSection)
    evaluation: EvaluationSection = field(default_factory=EvaluationSection)
    scaling: ScalingSection = field(default_factory=ScalingSection)
    protocols: ProtocolsSection = field(default_factory=ProtocolsSection)
    export: ExportSection = field(default_factory=ExportSection)
    cluster: ClusterSection = field(default_factory=ClusterSection)
    sweep: SweepSection = field(default_factory=SweepSection)
    tracking: TrackingSection = field(default_factory=TrackingSection)

    @property
    def run_dir(self) -> Path:
        return Path(self.run.dir).expanduser() / self.run.name

    @property
    def num_gpus(self) -> float:
        """GPUs that the placement asks for; a colocated engine or rank takes half of one."""
        engines = (self.rollout.num_actors + self.evaluation.num_actors) * self.engine.num_gpus
        total = engines + self.learner.num_ranks * self.learner.num_gpus_per_rank
        return total * (0.5 if self.cluster.colocated else 1.0)

    @property
    def num_cpus(self) -> float:
        """CPU cores that the placement asks for; reward actors take a tenth of a core each in Ray's books."""
        engines = (self.rollout.num_actors + self.evaluation.num_actors) * self.engine.num_cpus
        return engines + self.learner.num_ranks * self.learner.num_cpus_per_rank + 0.1 * self.reward.num_actors

    @property
    def start_policy(self) -> str:
        """What RL starts from: `sft`, or `base` without SFT."""
        return "sft" if self.sft.adapter or self.sft.num_steps else "base"

    @property
    def policies(self) -> tuple[str, ...]:
        """What is evaluated, in the order of training."""
        return ("base", "sft", "rl") if self.start_policy == "sft" else ("base", "rl")

    @property
    def buckets_tokens(self) -> tuple[int, ...]:
        """All budgets that training draws from, whichever source has them, smallest first."""
        return tuple(sorted({b for s in self.data.train for b in s.buckets_tokens or self.budget.buckets_tokens}))

    def resolved(self, source: TaskSource) -> TaskSource:
        """The source as its tasks are read: with its preset's settings, and with the run's verifier where it names none."""
        source = apply_preset(source)
        if source.verifier:
            return source
        return replace(source, verifier=self.reward.verifier, verifier_args=self.reward.verifier_args)

    @property
    def max_prompt_tokens(self) -> int:
        """What is left of the model's length by the longest completion."""
        longest = max(self.rollout.max_completion_tokens, self.evaluation.max_completion_tokens)
        caps = (self.rollout.cap_tokens, *self.evaluation.caps_tokens, *self.scaling.caps_tokens)
        if caps := tuple(cap for cap in caps if cap):
            # A text has no more tokens than bytes.
            forced = len(self.budget.forced_answer_text.encode()) + self.budget.answer_tokens
            longest = max(longest, max(caps) + forced)
        if self.heads.num_tasks:
            longest += len(self.heads.verification_prompt.encode())
        return self.model.max_length_tokens - longest
