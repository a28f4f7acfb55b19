"""What is wrong with the settings of int4 and of the export; part of `configs.checks`."""

from typing import Any

from configs.checks.rules import COUNT, NOT_NEGATIVE, POSITIVE, SHARE, Rule, expected
from configs.schema.run import RunConfig

INT4_GROUP = 32
EXPORT_RULES: dict[str, Rule] = {
    "export.default_cap_tokens": NOT_NEGATIVE,
    "export.parity_prompts": NOT_NEGATIVE,
    "export.parity_tokens": COUNT,
    "export.min_greedy_agreement": SHARE,
    "export.min_token_agreement_int4": SHARE,
    "export.max_logprob_gap": POSITIVE,
    "export.max_logprob_gap_int4": POSITIVE,
    "export.max_accuracy_gap": SHARE,
    "export.max_score_gap": POSITIVE,
}


def int4_problems(config: RunConfig, hf_config: dict[str, Any]) -> list[str]:
    """Where int4 was asked for and a layer's width is no multiple of the group."""
    asked = [
        key
        for key, value in (
            ("model.base_precision", config.model.base_precision),
            ("export.precision", config.export.precision),
        )
        if value == "int4"
    ]
    text_config = hf_config.get("text_config") or hf_config
    widths = [text_config.get("hidden_size"), text_config.get("intermediate_size")]
    is_odd = any(width and width % INT4_GROUP for width in widths)
    words = f"native with layers of width {' and '.join(map(str, widths))} (int4 takes multiples of {INT4_GROUP})"
    return [
        expected(key, words if key.startswith("model") else words.replace("native", "f16"), "int4")
        for key in asked
        if is_odd
    ]
