"""The settings that evaluation and export were made with, written beside them: results never pass for those of others."""

import json
from typing import Any

from configs.errors import UserError
from configs.load import as_flat_dict
from configs.schema.run import RunConfig
from orchestrator.record import run_files

EVALUATION_SETTINGS = ("evaluation.", "scaling.", "data.evaluation.", "budget.")
"""What the figures of the evaluation depend on besides the policies: beginnings of keys."""
EXPORT_SETTINGS_FILE = "export_settings.json"
"""A file of the run directory, not of the export."""


def evaluation_settings(config: RunConfig) -> dict[str, Any]:
    """By dotted key; where the engines run makes no difference."""
    flat = as_flat_dict(config)
    return {
        key: value
        for key, value in flat.items()
        if key.startswith(EVALUATION_SETTINGS) and key != "evaluation.num_actors"
    }


def export_settings(config: RunConfig) -> dict[str, Any]:
    """By dotted key; when the export is made makes no difference."""
    return {
        key: value
        for key, value in as_flat_dict(config).items()
        if key.startswith("export.") and key != "export.at_end"
    }


def is_evaluated_otherwise(config: RunConfig) -> bool:
    """Whether the evaluation that is there was made with other settings."""
    made_with = run_files.read_json(config.run_dir / run_files.SETTINGS_FILE)
    return made_with is not None and made_with != evaluation_settings(config)


def begin_evaluation(config: RunConfig) -> None:
    """Write down the settings, once what was made with others no longer passes for complete."""
    if is_evaluated_otherwise(config):
        names = [f"evaluation/{policy}.jsonl" for policy in ("base", "sft", "rl")]
        for name in (*names, run_files.SCALING_FILE, run_files.SWITCHER_FILE):
            (config.run_dir / name).unlink(missing_ok=True)
    run_files.write_text(config.run_dir / run_files.SETTINGS_FILE, json.dumps(evaluation_settings(config), indent=1))


def refuse_other_export(config: RunConfig) -> None:
    """Raises UserError when the export that is there was made with other settings."""
    made_with, here = run_files.read_json(config.run_dir / EXPORT_SETTINGS_FILE), export_settings(config)
    if made_with is None or made_with == here:
        return
    changed = ", ".join(
        f"{key} {made_with.get(key)!r} → {here[key]!r}" for key in here if made_with.get(key) != here[key]
    )
    raise UserError(
        f"{config.run_dir / 'export'}: made with other settings ({changed}); `terse export --force` makes it again, "
        "export.at_end=false leaves it"
    )


def write_export_settings(config: RunConfig) -> None:
    """Once the export is there."""
    run_files.write_text(config.run_dir / EXPORT_SETTINGS_FILE, json.dumps(export_settings(config), indent=1))
