"""What operators apply is what this version of Terse needs: fields, pins, resources, commands."""

import json
import os
import re
import shlex
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import pytest
import yaml

from configs.load import load_config
from orchestrator.__main__ import CONFIGURED, make_parser
from orchestrator.record.dashboard import exported_name

ROOT = Path(__file__).resolve().parents[3]
DEPLOY = ROOT / "deploy" / "cluster"
TEXTS = [
    *sorted(path for path in DEPLOY.rglob("*") if path.suffix in {".yaml", ".sh"} or path.name == "Dockerfile"),
    *(ROOT / "docs" / name for name in ("guides/cluster.md", "guides/gpus.md", "operations.md")),
]
IMAGE = "registry.example/terse:0.1.0"
KUBERAY = {path.stem: path for path in (DEPLOY / "kuberay").glob("*.yaml")}
PAPER = load_config("paper_7b_8gpu")

# Field names of ray.io/v1, KubeRay 1.5 and later.
CLUSTER_FIELDS = {
    *("authOptions", "autoscalerOptions", "enableInTreeAutoscaling", "gcsFaultToleranceOptions", "headGroupSpec"),
    *("headServiceAnnotations", "managedBy", "rayVersion", "suspend", "upgradeStrategy", "workerGroupSpecs"),
}
JOB_FIELDS = {
    *("activeDeadlineSeconds", "backoffLimit", "clusterSelector", "deletionStrategy", "entrypoint"),
    *("entrypointNumCpus", "entrypointNumGpus", "entrypointResources", "jobId", "managedBy", "metadata"),
    *("rayClusterSpec", "runtimeEnvYAML", "shutdownAfterJobFinishes", "submissionMode", "submitterConfig"),
    *("submitterPodTemplate", "suspend", "ttlSecondsAfterFinished"),
}
HEAD_FIELDS = {"enableIngress", "headService", "labels", "rayStartParams", "resources", "serviceType", "template"}
WORKER_FIELDS = {
    *("groupName", "idleTimeoutSeconds", "labels", "maxReplicas", "minReplicas", "numOfHosts", "rayStartParams"),
    *("replicas", "resources", "scaleStrategy", "suspend", "template"),
}


def pins() -> dict[str, str]:
    lines = (ROOT / "constraints-gpu.txt").read_text().splitlines()
    return dict(line.split("==") for line in lines if "==" in line and not line.startswith("#"))


def cluster_spec(kind: str) -> dict:
    resource = yaml.safe_load(KUBERAY[kind].read_text())
    return resource["spec"] if kind == "raycluster" else resource["spec"]["rayClusterSpec"]


def pods(kind: str) -> list[tuple[int, dict]]:
    """(replicas, pod spec) of the head and of each worker group."""
    spec = cluster_spec(kind)
    workers = [(group["replicas"], group["template"]["spec"]) for group in spec["workerGroupSpecs"]]
    return [(1, spec["headGroupSpec"]["template"]["spec"]), *workers]


def gib(quantity: str) -> float:
    return float(quantity.removesuffix("Gi"))


@pytest.mark.parametrize(("kind", "api_kind"), [("raycluster", "RayCluster"), ("rayjob", "RayJob")])
def test_kuberay_resources_have_only_fields_of_their_kind(kind, api_kind):
    resource = yaml.safe_load(KUBERAY[kind].read_text())
    assert resource.keys() == {"apiVersion", "kind", "metadata", "spec"}
    assert (resource["apiVersion"], resource["kind"]) == ("ray.io/v1", api_kind)
    assert re.fullmatch(r"[a-z]([-a-z0-9]{0,45}[a-z0-9])?", resource["metadata"]["name"])
    if kind == "rayjob":
        assert resource["spec"].keys() <= JOB_FIELDS
        assert resource["spec"]["submissionMode"] in {"K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode"}
    spec = cluster_spec(kind)
    assert spec.keys() <= CLUSTER_FIELDS
    assert spec["headGroupSpec"].keys() <= HEAD_FIELDS
    for group in spec["workerGroupSpecs"]:
        assert group.keys() <= WORKER_FIELDS
        assert {"groupName", "replicas", "minReplicas", "maxReplicas", "rayStartParams", "template"} <= group.keys()
        assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
    for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"]):
        assert all(isinstance(value, str) for value in group["rayStartParams"].values())


@pytest.mark.parametrize("kind", ["raycluster", "rayjob"])
def test_pods_mount_only_volumes_that_they_have_and_enough_shared_memory(kind):
    for _, pod in pods(kind):
        volumes = {volume["name"]: volume for volume in pod["volumes"]}
        assert volumes["shm"]["emptyDir"]["medium"] == "Memory"
        for container in pod["containers"]:
            mounts = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
            assert set(mounts.values()) <= volumes.keys()
            assert mounts["/dev/shm"] == "shm"
            assert mounts["/data"] == "data"
            # What lies in /dev/shm counts towards the memory of the container.
            shm = gib(volumes["shm"]["emptyDir"]["sizeLimit"])
            assert shm <= gib(container["resources"]["limits"]["memory"]) / 2


@pytest.mark.parametrize("kind", ["raycluster", "rayjob"])
def test_the_cluster_holds_the_placement_of_the_papers_run(kind):
    head, *workers = [(n, pod["containers"][0]["resources"]) for n, pod in pods(kind)]
    for _, resources in (head, *workers):
        assert resources["requests"] == resources["limits"]
    num_gpus = sum(n * int(resources["limits"]["nvidia.com/gpu"]) for n, resources in workers)
    num_cpus = sum(n * float(resources["limits"]["cpu"]) for n, resources in workers)
    assert num_gpus == PAPER.num_gpus
    assert num_cpus >= PAPER.num_cpus
    assert "nvidia.com/gpu" not in head[1]["limits"]
    assert cluster_spec(kind)["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"


@pytest.mark.parametrize("kind", ["raycluster", "rayjob"])
def test_images_and_ray_version_are_those_of_the_pins(kind):
    spec = cluster_spec(kind)
    assert spec["rayVersion"] == pins()["ray"]
    assert {container["image"] for _, pod in pods(kind) for container in pod["containers"]} == {IMAGE}


def test_the_image_is_tagged_with_the_packages_version():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert IMAGE.rpartition(":")[2] == project["version"]
    for path in TEXTS:
        assert set(re.findall(r"[\w./-]+/terse:[\w.]+", path.read_text())) <= {IMAGE}, path


@pytest.mark.parametrize("kind", ["raycluster", "rayjob"])
def test_kuberay_keeps_token_authentication_and_the_dashboard_inside_the_cluster(kind):
    spec = cluster_spec(kind)
    assert spec["authOptions"] == {"mode": "token"}
    assert spec["headGroupSpec"]["serviceType"] == "ClusterIP"


def test_nothing_else_listens_beyond_loopback_or_turns_authentication_off():
    for path in TEXTS:
        text = path.read_text()
        assert "0.0.0.0" not in text, path
        assert not re.search(r"RAY_AUTH_MODE=(?!token)", text), path
        for line in re.findall(r"^.*ray start --head.*$", text, re.MULTILINE):
            assert "--dashboard-host=127.0.0.1" in line, path


def test_the_slurm_job_asks_for_what_the_papers_run_needs():
    text = (DEPLOY / "slurm.sh").read_text()
    options = dict(re.findall(r"^#SBATCH --([a-z-]+)(?:=(\S+))?$", text, re.MULTILINE))
    assert int(options["nodes"]) * int(options["gpus-per-node"]) == PAPER.num_gpus
    assert int(options["cpus-per-task"]) >= PAPER.num_cpus
    assert {"requeue", "signal"} <= options.keys()
    assert text.count("#SBATCH") == len(options)
    subprocess.run(["bash", "-n", DEPLOY / "slurm.sh"], check=True)


def test_the_token_of_a_slurm_job_is_its_owners_alone(tmp_path):
    """The script's own line, run."""
    (line,) = [line for line in (DEPLOY / "slurm.sh").read_text().splitlines() if line.startswith("(umask")]
    token = tmp_path / "token"
    path = f"{Path(sys.executable).parent}:/usr/bin:/bin"
    subprocess.run(["bash", "-ec", line], env={"RAY_AUTH_TOKEN_PATH": str(token), "PATH": path}, check=True)
    assert token.stat().st_mode & 0o777 == 0o600
    assert re.fullmatch(r"[0-9a-f]{64}\n", token.read_text())


def test_ray_accepts_the_cluster_file():
    from ray.autoscaler._private.util import prepare_config, validate_config

    config = prepare_config(yaml.safe_load((DEPLOY / "ray_cluster.yaml").read_text()))
    validate_config(config)
    assert config["docker"]["image"] == IMAGE
    assert "--env RAY_AUTH_MODE=token" in config["docker"]["run_options"]
    with pytest.raises(Exception, match="no_such_field"):
        validate_config({**config, "no_such_field": 1})


def ray_start_commands() -> list[str]:
    found = []
    for name in ("ray_cluster.yaml", "slurm.sh"):
        text = (DEPLOY / name).read_text().replace("\\\n", " ")
        found += [
            match.split("&")[0].strip() for match in re.findall(r"^\W*\s*(?!#)(ray start .*)$", text, re.MULTILINE)
        ]
        found += [match.strip() for match in re.findall(r"srun [^#\n]*?(ray start [^&\n]*)&", text)]
    return sorted(set(found))


def test_ray_understands_every_start_command():
    import ray.scripts.scripts as scripts

    commands = ray_start_commands()
    assert len(commands) == 4
    for command in commands:
        scripts.start.make_context("start", shlex.split(command.replace("$port", "6379"))[2:])
    with pytest.raises(Exception, match="no-such-flag"):
        scripts.start.make_context("start", ["--no-such-flag"])


def terse_commands() -> list[str]:
    """Every `terse …` that an operator is told to run, without what only a shell understands."""
    found = []
    for path in TEXTS:
        text = path.read_text().replace("\\\n", " ")
        found += re.findall(
            r"(?:^|[\s`(])((?:terse|python -m orchestrator) (?!-|COMMAND|[a-z-]+`)[a-z-]+(?: [^`\n&|;#]*)?)", text
        )
    found = [command.strip().replace('"${arguments[@]}"', "--config paper_7b_8gpu run.dir=runs") for command in found]
    # The end of a quoted shell line.
    found = [command.removesuffix("'") if command.count("'") % 2 else command for command in found]
    return sorted({command for command in found if command.split()[-1] != "terse"})


def test_every_command_that_operators_are_told_to_run_parses_with_its_configuration():
    commands = [command for command in terse_commands() if re.match(r"(?:terse|python -m orchestrator) \w", command)]
    parsed = []
    for command in commands:
        words = shlex.split(command)
        arguments = make_parser().parse_args(words[1 if words[0] == "terse" else 3 :])
        if arguments.command in CONFIGURED:
            load_config(arguments.config, arguments.overrides)
        parsed.append(arguments.command)
    assert parsed.count("run") >= 2


def test_the_dockerfile_installs_the_pinned_gpu_versions_and_does_not_run_as_root():
    text = (DEPLOY / "Dockerfile").read_text().replace("\\\n", " ")
    steps = [line.split(None, 1) for line in text.splitlines() if line.strip() and not line.startswith("#")]
    assert {keyword for keyword, _ in steps} <= {
        "FROM",
        "RUN",
        "WORKDIR",
        "COPY",
        "ARG",
        "ENV",
        "VOLUME",
        "USER",
        "CMD",
    }
    assert steps[0] == ["FROM", "python:3.12-slim-bookworm"]
    (install,) = [body for keyword, body in steps if keyword == "RUN" and "pip install" in body]
    assert "--constraint constraints-gpu.txt '.[gpu]'" in install
    assert [body for keyword, body in steps if keyword == "USER"] == ["terse"]
    assert "RAY_AUTH_MODE=token" in text
    ignored = (DEPLOY / "Dockerfile.dockerignore").read_text().splitlines()
    for keyword, body in steps:
        if keyword == "COPY":
            for source in body.split()[:-1]:
                assert (ROOT / source).exists(), source
                assert f"!{source}" in ignored
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    packages = project["tool"]["setuptools"]["packages"]["find"]["include"]
    assert {f"!{package.removesuffix('*')}" for package in packages} <= set(ignored)


@pytest.mark.parametrize("kind", ["raycluster", "rayjob"])
def test_pods_run_without_rights_and_can_write_to_a_fresh_volume(kind):
    for _, pod in pods(kind):
        context = pod["securityContext"]
        assert (context["runAsNonRoot"], context["runAsUser"], context["fsGroup"]) == (True, 1000, 1000)
        assert context["seccompProfile"] == {"type": "RuntimeDefault"}
        assert pod["automountServiceAccountToken"] is False
        for container in pod["containers"]:
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "capabilities": {"drop": ["ALL"]},
            }
    assert "--uid 1000 terse" in (DEPLOY / "Dockerfile").read_text()


def test_a_refused_configuration_is_not_tried_again_and_again_on_eight_gpus():
    job = yaml.safe_load(KUBERAY["rayjob"].read_text())["spec"]
    assert job["backoffLimit"] <= 1
    plan, run = re.findall(r"terse (plan|run) --config paper_7b_8gpu run.dir=/data/runs", job["entrypoint"])
    assert (plan, run) == ("plan", "run")
    assert shlex.split(job["entrypoint"])[:2] == ["sh", "-c"]
    subprocess.run(["sh", "-n", "-c", shlex.split(job["entrypoint"])[2]], check=True)


CRDS = os.environ.get("TERSE_KUBERAY_CRDS", "")


@pytest.mark.skipif(not CRDS, reason="TERSE_KUBERAY_CRDS names no directory with KubeRay's CRDs (ray.io_*.yaml)")
@pytest.mark.parametrize(("kind", "plural"), [("raycluster", "rayclusters"), ("rayjob", "rayjobs")])
def test_the_operators_own_schema_accepts_the_files(kind, plural):
    import jsonschema

    crd = yaml.safe_load((Path(CRDS) / f"ray.io_{plural}.yaml").read_text())
    (schema,) = [version["schema"]["openAPIV3Schema"] for version in crd["spec"]["versions"] if version["name"] == "v1"]
    resource = yaml.safe_load(KUBERAY[kind].read_text())
    jsonschema.Draft7Validator(closed(schema)).validate(resource)
    resource["spec"]["noSuchField"] = 1
    with pytest.raises(jsonschema.ValidationError, match="noSuchField"):
        jsonschema.Draft7Validator(closed(schema)).validate(resource)


def closed(schema):
    """The schema without fields that it does not name: the API server drops those without a word."""
    if isinstance(schema, list):
        return [closed(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    found = {key: closed(value) for key, value in schema.items()}
    is_open = schema.get("x-kubernetes-preserve-unknown-fields") or "additionalProperties" in schema
    if isinstance(schema.get("properties"), dict) and schema.get("type") == "object" and not is_open:
        found["additionalProperties"] = False
    return found


FAKE_SLURM = {
    "scontrol": 'echo "scontrol $*" >> "$LOG"; [ "$1" = show ] && echo node1 || true',
    "srun": 'case "$*" in *hostname*) echo 127.0.0.1;; *) echo "srun $*" >> "$LOG"; eval "$SRUN";; esac',
    "terse": 'echo "terse $*" >> "$LOG"; trap "exit 130" TERM; for i in 1 2 3 4 5 6 7 8 9; do sleep 1; done',
    "python": 'case "$*" in *token_hex*) echo token;; *) eval "$NODES";; esac',
}


def start_slurm_job(tmp_path, srun: str, nodes: str, **environment: str) -> subprocess.Popen[str]:
    """The script with programs of ours in place of Slurm's, Ray and Terse."""
    binaries = tmp_path / ".venv" / "bin"
    binaries.mkdir(parents=True)
    for name, body in FAKE_SLURM.items():
        (binaries / name).write_text(f"#!/bin/bash\n{body}\n")
        (binaries / name).chmod(0o755)
    (binaries / "activate").write_text("")
    (tmp_path / "log").write_text("")
    variables = {"SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "node1", "LOG": str(tmp_path / "log"), "SRUN": srun}
    return subprocess.Popen(
        ["bash", DEPLOY / "slurm.sh"],
        cwd=tmp_path,
        env={**variables, "NODES": nodes, "PATH": f"{binaries}:/usr/bin:/bin", **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def test_a_slurm_job_whose_head_does_not_start_ends_at_once(tmp_path):
    job = start_slurm_job(tmp_path, srun="exit 1", nodes="exit 1")
    output, _ = job.communicate(timeout=60)
    assert job.returncode == 1
    assert "Ray's head node has ended" in output
    assert "terse run" not in (tmp_path / "log").read_text()


def test_a_slurm_job_whose_nodes_do_not_come_gives_up(tmp_path):
    job = start_slurm_job(tmp_path, srun="exec sleep 60", nodes="echo 0", TERSE_CLUSTER_TIMEOUT_S="1")
    output, _ = job.communicate(timeout=60)
    assert job.returncode == 1
    assert "no 1 node(s) after 1 s" in output


def test_a_slurm_job_that_is_told_to_end_lets_the_run_save_and_queues_again(tmp_path):
    job = start_slurm_job(tmp_path, srun="exec sleep 60", nodes="echo 1")
    while "terse run" not in (tmp_path / "log").read_text():
        time.sleep(0.1)
    job.terminate()
    job.communicate(timeout=60)
    assert job.returncode == 130
    assert "scontrol requeue 7" in (tmp_path / "log").read_text()


def test_grafana_shows_metrics_that_a_run_exports():
    board = json.loads((DEPLOY / "grafana.json").read_text())
    asked = {
        re.match(r"ray_(terse_\w+)\{run=~", target["expr"])[1]
        for panel in board["panels"]
        for target in panel["targets"]
    }
    source = "".join(path.read_text() for path in (ROOT / "orchestrator").rglob("*.py"))
    named = set(re.findall(r'"((?:rollout|reward|time|train)/\w+)"', source))
    named |= {f"time/{part}_s" for part in ("rollout", "update", "publish")}
    named |= {"step", *(f"lost/{role}" for role in ("rollout_actor", "inference_actor", "reward_actor", "learner"))}
    assert asked <= {exported_name(name) for name in named}
    assert len(board["panels"]) == len({panel["title"] for panel in board["panels"]}) == 9


def test_files_that_could_not_be_run_say_so():
    for name, words in {
        "Dockerfile": "Not built here",
        "kuberay/raycluster.yaml": "not applied to a cluster",
        "kuberay/rayjob.yaml": "not applied to a cluster",
        "ray_cluster.yaml": "not brought up",
        "slurm.sh": "was not submitted",
    }.items():
        assert words in " ".join((DEPLOY / name).read_text().replace("\n#", " ").split()), name
