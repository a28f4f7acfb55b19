"""`MODEL_CARD.md` of an export: what it is, how well and how briefly it reasons, how to run it."""

import json
import shutil
from pathlib import Path
from typing import Any

from configs.schema.run import RunConfig
from deploy.manifest import CARD_FILE, read_manifest
from orchestrator.report.markdown import make_environment
from orchestrator.report.run import headline
from orchestrator.report.tables import policy_table

CARD_FIGURES = ("caps.png", "lengths.png")
"""The figures that a card shows: accuracy against length, where there are caps, and lengths."""


def write_card(config: RunConfig, directory: Path, parity: dict[str, Any], quantisation: dict[str, Any]) -> Path:
    """From the run's `summary.json` and figures, as far as they are there; figures are copied beside the card."""
    summary_path = config.run_dir / "summary.json"
    summary = json.loads(summary_path.read_text()) if summary_path.is_file() else {"stages": {}}
    figures = []
    for name in CARD_FIGURES:
        if (source := config.run_dir / "figures" / name).is_file():
            shutil.copyfile(source, directory / name)
            figures.append(name)
    text = (
        make_environment()
        .get_template("model_card.md.j2")
        .render(
            manifest=read_manifest(directory),
            config=config,
            headline=headline(summary),
            table=policy_table(summary).without("shorter"),
            figures=figures,
            parity=parity,
            quantisation=quantisation,
        )
    )
    path = directory / CARD_FILE
    path.write_text(text)
    return path
