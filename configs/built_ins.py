"""The functions that come with Terse, by the short names that settings take. A function of your own is named as
`package.module:function` in the same places, and is loaded and called in the same way (`configs.functions`).

| setting | called with, besides the settings of `<setting>_args` | returns | runs in |
|---|---|---|---|
| `reward.verifier` | a completion's text, `rewards.base.Reference` | `rewards.base.AnswerVerdict`, or True or False | the confined scoring process |
| `reward.length` | `rewards.length.types.LengthInputs` of a group | a `Score` for each of its completions | reward actors |
| `rl.loss` | `actors.losses.LossInputs`, `LossSettings` | `actors.losses.Surrogate` | learner ranks |
| `rl.advantage` | the rewards of each group of a step | an array for each group | the driver |
| `data.*.source` | nothing | rows, as mappings | the driver |
| `scaling.same_answer` | two answers, as texts | whether they are one vote | the confined scoring process |
"""

VERIFIERS = {
    "math": "rewards.math_answer:verify_math",
    "label": "rewards.label_answer:verify_choice",
    "code": "actors.code_verifier:verify_code",
}
LENGTH_REWARDS = {
    "none": "rewards.length.limits:no_length_reward",
    "soft_barrier": "rewards.length.limits:soft_barrier_reward",
    "lcpo_exact": "rewards.length.limits:lcpo_exact",
    "lcpo_max": "rewards.length.limits:lcpo_max",
    "dapo_overlong": "rewards.length.limits:dapo_overlong",
    "arora_zanette": "rewards.length.siblings:arora_zanette",
    "kimi": "rewards.length.siblings:kimi",
    "hapo": "rewards.length.history:hapo",
    "thinkprune": "rewards.length.limits:thinkprune",
    "dler": "rewards.length.limits:dler",
    "da_dler": "rewards.length.limits:da_dler",
    "laser": "rewards.length.limits:laser",
    "laser_d": "rewards.length.history:laser_d",
    "grpo_lambda": "rewards.length.history:grpo_lambda",
    "shorter_better": "rewards.length.siblings:shorter_better",
    "cosine": "rewards.length.limits:cosine",
    "group_relative": "rewards.length.siblings:group_relative",
}
LOSSES = {
    "grpo": "actors.losses:grpo_surrogate",
    "gspo": "actors.losses:gspo_surrogate",
    "cispo": "actors.losses:cispo_surrogate",
}
ADVANTAGES = {
    "grpo": "orchestrator.rl.advantage:grpo",
    "dr_grpo": "orchestrator.rl.advantage:dr_grpo",
    "rloo": "orchestrator.rl.advantage:rloo",
    "batch_std": "orchestrator.rl.advantage:batch_std",
}
TASK_SOURCES = {
    "code": "orchestrator.data.code_tasks:rows",
}
SAME_ANSWER = {
    "math": "rewards.math_answer:same_answer",
    "text": "rewards.answer_text:same_text",
}
