import shutil
from dataclasses import replace

import pytest

from actors import files
from configs.errors import UserError
from configs.load import ConfigError, load_config
from orchestrator.record import checkpoint, run_files
from orchestrator.record.checkpoint import KeepRule
from orchestrator.record.mirror import Mirror
from tests.orchestrator.record.test_checkpoint import make_checkpoint


@pytest.fixture(params=["file", "memory"])
def config(request, tmp_path):
    """A run directory beside a copy of each kind."""
    address = f"file://{tmp_path}/copy" if request.param == "file" else f"memory://{tmp_path}"
    config = load_config("quickstart", [f"run.dir={tmp_path}/here", f"run.mirror={address}"])
    run_files.write_text(config.run_dir / "config.yaml", "run: {}\n")
    return config


def save(config, step):
    """As a run does: metrics, then the checkpoint, then the copy."""
    run_files.append_metrics(config.run_dir, "rl", step, {"reward/mean": 0.5})
    checkpoint.save(config.run_dir / "rl", make_checkpoint(step), KeepRule())


def contents(directory):
    return {path.relative_to(directory): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def test_a_directory_that_is_lost_is_fetched_as_it_was(config):
    mirror = Mirror(config)
    for step in (1, 2, 3):
        save(config, step)
        mirror.push()
    expected = contents(config.run_dir)
    shutil.rmtree(config.run_dir)
    assert Mirror(config).fetch()
    assert contents(config.run_dir) == expected
    assert [path.name for path in checkpoint.list_checkpoints(config.run_dir / "rl")] == ["step_000002", "step_000003"]


def test_a_copy_cut_short_costs_one_checkpoint(config, monkeypatch):
    mirror = Mirror(config)
    save(config, 1)
    mirror.push()
    save(config, 2)
    put_file, num_put = mirror._store.put_file, []

    def put_two(*names):
        if len(num_put) == 4:
            raise OSError("connection lost")
        num_put.append(names)
        put_file(*names)

    with monkeypatch.context() as patched:
        patched.setattr(mirror._store, "put_file", put_two)
        assert mirror.try_to_push() == "OSError: connection lost"
    there = {name for name in mirror._list() if "step_000002" in name}
    assert there
    assert "rl/step_000002/manifest.json" not in there
    shutil.rmtree(config.run_dir)
    Mirror(config).fetch()
    saved, damages = checkpoint.load_latest(config.run_dir / "rl")
    assert saved.state.step == 1
    assert "step_000002" in damages[0]


def test_what_a_push_missed_the_next_one_brings(config):
    mirror = Mirror(config)
    save(config, 1)
    assert mirror.try_to_push() == ""
    save(config, 2)
    save(config, 3)
    Mirror(config).push()
    assert mirror._list() == {path.as_posix() for path in contents(config.run_dir)}


def test_neither_the_lock_nor_temporaries_are_copied(config):
    with run_files.sole_writer(config.run_dir):
        files.temporary_name(config.run_dir / "x").write_text("half")
        mirror = Mirror(config)
        mirror.push()
    assert mirror._list() == {"config.yaml"}


def test_a_directory_that_lies_behind_its_copy_is_refused(config):
    save(config, 1)
    Mirror(config).push()
    old = contents(config.run_dir)
    save(config, 2)
    Mirror(config).push()
    shutil.rmtree(config.run_dir)
    for name, data in old.items():
        run_files.write_bytes(config.run_dir / name, data)
    with pytest.raises(RuntimeError, match=r"has step 2 of rl, .* has step 1; remove the directory"):
        Mirror(config).fetch()


def test_a_directory_that_is_ahead_of_its_copy_stays(config):
    save(config, 1)
    Mirror(config).push()
    save(config, 2)
    assert not Mirror(config).fetch()
    assert checkpoint.load_latest(config.run_dir / "rl")[0].state.step == 2


def test_an_address_that_cannot_be_opened_is_refused(config):
    for address in ("nosuch://bucket/runs", "abfs://container/runs"):
        with pytest.raises(ConfigError, match=r"run\.mirror: expected an address that fsspec can open"):
            Mirror(replace(config, run=replace(config.run, mirror=address)))


def test_without_a_mirror_nothing_is_copied(config, tmp_path):
    mirror = Mirror(replace(config, run=replace(config.run, mirror="")))
    assert not mirror.fetch()
    mirror.push()
    assert not (tmp_path / "copy").exists()


def test_a_place_with_other_peoples_files_is_refused_and_left_alone(tmp_path):
    place = tmp_path / "copies" / "Documents"
    place.mkdir(parents=True)
    (place / "thesis.txt").write_text("years of work")
    (place / "config.yaml").write_text("of another program")
    config = load_config(
        "quickstart", [f"run.dir={tmp_path}/runs", "run.name=Documents", f"run.mirror=file://{tmp_path}/copies"]
    )
    with pytest.raises(UserError, match=r"run\.mirror: expected an empty place or a copy of a run, found other files"):
        Mirror(config).fetch()
    assert (place / "thesis.txt").read_text() == "years of work"
