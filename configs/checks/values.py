"""Which values of each setting are right, one line a key; what settings demand of each other is in `checks`."""

from configs.checks.export import EXPORT_RULES
from configs.checks.heads import HEADS_LIST_RULES, HEADS_RULES
from configs.checks.reward import REWARD_LIST_RULES, REWARD_RULES
from configs.checks.rules import BELOW_ONE, COUNT, NOT_NEGATIVE, POSITIVE, POSITIVE_SHARE, SHARE, Rule

MAX_LORA_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""What vLLM takes as `max_lora_rank`."""

_UNTRUNCATED = "in RL rollouts (a truncated distribution biases the importance ratios)"

RULES: dict[str, Rule] = {
    "run.seed": ("from 0 to 4294967295", lambda value: 0 <= value < 2**32),
    "run.keep_checkpoints": COUNT,
    "run.keep_every_steps": NOT_NEGATIVE,
    "model.max_length_tokens": COUNT,
    "lora.rank": COUNT,
    "lora.alpha": POSITIVE,
    "lora.dropout": BELOW_ONE,
    "data.train.num_tasks": NOT_NEGATIVE,
    "data.evaluation.num_tasks": NOT_NEGATIVE,
    "data.train.weight": POSITIVE,
    "data.evaluation.weight": POSITIVE,
    "data.sft.num_rows": NOT_NEGATIVE,
    "budget.per_difficulty_tokens": NOT_NEGATIVE,
    "sft.num_steps": NOT_NEGATIVE,
    "sft.rows_per_step": COUNT,
    "sft.learning_rate": POSITIVE,
    "sft.warmup_frac": SHARE,
    "sft.weight_decay": NOT_NEGATIVE,
    "sft.checkpoint_every_steps": COUNT,
    "rl.num_steps": COUNT,
    "rl.groups_per_step": COUNT,
    "rl.group_size": ("at least 2 (an advantage is relative to the group)", lambda value: value >= 2),
    "rl.learning_rate": POSITIVE,
    "rl.warmup_frac": SHARE,
    "rl.weight_decay": NOT_NEGATIVE,
    "rl.clip_low": ("above 0 and below 1", lambda value: 0 < value < 1),
    "rl.clip_high": POSITIVE,
    "rl.importance_cap": ("at least 1", lambda value: value >= 1),
    "rl.sequence_mask_gap": NOT_NEGATIVE,
    "rl.entropy_bonus": NOT_NEGATIVE,
    "rl.kl_beta": NOT_NEGATIVE,
    "rl.kl_target": NOT_NEGATIVE,
    "rl.kl_gain": ("from 0 to below 5", lambda value: 0 <= value < 5),
    "rl.max_staleness": NOT_NEGATIVE,
    "rl.max_consecutive_drops": COUNT,
    "rl.checkpoint_every_steps": COUNT,
    "rl.evaluate_every_steps": NOT_NEGATIVE,
    "rl.best_cap_tokens": NOT_NEGATIVE,
    **REWARD_RULES,
    **HEADS_RULES,
    "rollout.num_actors": COUNT,
    "rollout.max_completion_tokens": COUNT,
    "rollout.temperature": POSITIVE,
    "rollout.top_p": (f"1 {_UNTRUNCATED}", lambda value: value == 1),
    "rollout.top_k": (f"0 {_UNTRUNCATED}", lambda value: value == 0),
    "rollout.min_p": (f"0 {_UNTRUNCATED}", lambda value: value == 0),
    "rollout.max_logprob_gap": POSITIVE,
    "rollout.generate_timeout_s": POSITIVE,
    "learner.call_timeout_s": POSITIVE,
    "engine.num_gpus": NOT_NEGATIVE,
    "engine.num_cpus": NOT_NEGATIVE,
    "engine.num_threads": NOT_NEGATIVE,
    "engine.max_num_seqs": COUNT,
    "engine.max_batched_tokens": NOT_NEGATIVE,
    "engine.block_tokens": ("0 or a multiple of 16", lambda value: value >= 0 and value % 16 == 0),
    "engine.num_kv_blocks": NOT_NEGATIVE,
    "engine.max_lora_rank": (
        f"one of {', '.join(map(str, MAX_LORA_RANKS))} (what vLLM takes)",
        lambda value: value in MAX_LORA_RANKS,
    ),
    "engine.gpu_memory_frac": POSITIVE_SHARE,
    "engine.kv_cache_gib": NOT_NEGATIVE,
    "learner.num_ranks": COUNT,
    "learner.num_gpus_per_rank": ("0 or 1", lambda value: value in (0, 1)),
    "learner.num_cpus_per_rank": NOT_NEGATIVE,
    "learner.num_threads": NOT_NEGATIVE,
    "learner.zero_stage": ("0, 1, 2 or 3", lambda value: 0 <= value <= 3),
    "learner.micro_batch_tokens": COUNT,
    "learner.max_grad_norm": POSITIVE,
    "learner.beta1": BELOW_ONE,
    "learner.beta2": BELOW_ONE,
    "evaluation.num_actors": NOT_NEGATIVE,
    "evaluation.num_tasks": COUNT,
    "evaluation.samples_per_task": COUNT,
    "evaluation.temperature": NOT_NEGATIVE,
    "evaluation.top_p": POSITIVE_SHARE,
    "evaluation.max_completion_tokens": COUNT,
    "sweep.num_trials": COUNT,
    "protocols.num_tasks": NOT_NEGATIVE,
    "protocols.num_runs": NOT_NEGATIVE,
    **EXPORT_RULES,
    "budget.answer_tokens": COUNT,
    "budget.curriculum_factor": POSITIVE,
    "budget.curriculum_steps": NOT_NEGATIVE,
    "rollout.cap_tokens": NOT_NEGATIVE,
    "cluster.gpu_memory_gib": NOT_NEGATIVE,
    "cluster.start_timeout_s": POSITIVE,
    "cluster.heartbeat_timeout_s": POSITIVE,
    "cluster.max_actor_losses": NOT_NEGATIVE,
    "cluster.max_learner_restarts": NOT_NEGATIVE,
}
"""The rule of every number in the schema."""

LIST_RULES: dict[str, Rule] = {
    "run.functions": ("texts", lambda value: True),
    "lora.target_modules": ("module names", lambda value: bool(value.strip())),
    "data.train.difficulties": ("numbers of operations of at least 1", lambda value: value >= 1),
    "data.evaluation.difficulties": ("numbers of operations of at least 1", lambda value: value >= 1),
    "data.sft.verbosity": ("probabilities from 0 to 1", lambda value: 0 <= value <= 1),
    "budget.buckets_tokens": ("budgets of at least 1 token", lambda value: value >= 1),
    "budget.weights": ("weights above 0", lambda value: value > 0),
    "evaluation.caps_tokens": ("caps of at least 1 token", lambda value: value >= 1),
    "protocols.names": ("names of protocols", lambda value: bool(value.strip())),
    "protocols.budgets_tokens": ("budgets of at least 1 token", lambda value: value >= 1),
    **{
        f"data.{name}.{key}": (words, lambda value: bool(value.strip()))
        for name in ("train", "evaluation", "easy", "hard")
        for key, words in (
            ("choice_fields", "names of row fields"),
            ("labels", "words"),
            ("verifier_fields", "names of row fields"),
        )
    },
    **{
        f"data.{name}.buckets_tokens": ("budgets of at least 1 token", lambda value: value >= 1)
        for name in ("train", "evaluation", "easy", "hard")
    },
    **REWARD_LIST_RULES,
    **HEADS_LIST_RULES,
}
"""The rule of every item of every list in the schema."""
