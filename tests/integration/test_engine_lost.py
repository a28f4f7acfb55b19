"""vLLM's own processes die: whatever the engine was being asked, and is asked then, says so."""

import asyncio
import os
from multiprocessing import forkserver

import numpy as np
import psutil
import pytest

from actors.engine import Engine
from actors.engine_log import EngineLost
from actors.types import Sampling
from configs.schema.run import EngineSection, ModelSection
from orchestrator.rl.probe import PROBE_VERSION
from tests.deploy.exports import make_adapter
from tests.fakes import published

pytestmark = pytest.mark.integration

PROMPT = np.arange(10, 20)
ASK = {
    "load_adapter": lambda engine, packed: engine.load_adapter(*published(packed, 1)),
    "generate": lambda engine, packed: engine.generate(PROMPT, 2, Sampling(temperature=1.0, max_tokens=200), 0),
    "pool_prompt": lambda engine, packed: engine.pool_prompt(PROMPT, 4, 0.5),
    "last_state": lambda engine, packed: engine.last_state(PROMPT, 0),
    "ping": lambda engine, packed: engine.ping(),
}


def find_core(before: set[psutil.Process]) -> psutil.Process:
    """The one that was not there before; engines of other tests may take their time to end."""
    new = set(psutil.Process().children(recursive=True)) - before
    (core,) = [child for child in new if "VLLM::EngineCore" in "".join(child.cmdline())]
    return core


def test_calls_in_flight_when_the_process_dies_and_later_ones_say_that_the_engine_is_lost(tiny_model_dir):
    packed = make_adapter(tiny_model_dir)

    async def run():
        before = set(psutil.Process().children(recursive=True))
        engine = Engine(
            model_path=str(tiny_model_dir),
            stop_token_ids=(1,),
            model=ModelSection(dtype="float32", max_length_tokens=256),
            config=EngineSection(num_gpus=0, max_num_seqs=8, max_lora_rank=8, kv_cache_gib=0.125),
            num_adapters=2,
            seed=0,
        )
        try:
            # As the successor of an engine that is lost before the first step.
            for version in (PROBE_VERSION, 0):
                await engine.load_adapter(*published(packed, version))
            core = find_core(before)
            core.suspend()
            in_flight = {name: asyncio.ensure_future(call(engine, packed)) for name, call in ASK.items()}
            await asyncio.sleep(1)
            assert not any(task.done() for task in in_flight.values())
            core.kill()
            await asyncio.wait(in_flight.values(), timeout=30)
            later = {f"{name}, later": asyncio.ensure_future(call(engine, packed)) for name, call in ASK.items()}
            await asyncio.wait(later.values(), timeout=30)
            found = {name: task.exception() if task.done() else "hangs" for name, task in (in_flight | later).items()}
        finally:
            await engine.shutdown()
        return found

    found = asyncio.run(run())
    assert {name: error for name, error in found.items() if not isinstance(error, EngineLost)} == {}


def test_an_engine_whose_process_does_not_start_says_why(tiny_model_dir, tmp_path):
    async def start():
        Engine(
            model_path=str(tiny_model_dir),
            stop_token_ids=(1,),
            model=ModelSection(dtype="float32", max_length_tokens=256),
            config=EngineSection(num_gpus=0, max_num_seqs=8, max_lora_rank=8, kv_cache_gib=0.125, num_kv_blocks=2),
            num_adapters=2,
            seed=0,
        )

    # Where an actor's output goes, its processes' too: a file. Those of this test are forked by a server of its own.
    forkserver._forkserver._stop()
    stdout = os.dup(1)
    try:
        with (tmp_path / "log").open("wb") as log:
            os.dup2(log.fileno(), 1)
        with pytest.raises(RuntimeError, match=r"vLLM's engine does not start: ValueError: .*256.*KV cache"):
            asyncio.run(start())
    finally:
        os.dup2(stdout, 1)
        os.close(stdout)
        forkserver._forkserver._stop()
