"""Engines that lie about their adapter, as hand-written fakes."""

from dataclasses import replace

import numpy as np
import pytest

from actors import adapters
from actors.types import HardCap
from orchestrator.rl.probe import cap_problem, logprob_distance, prove_adapters_reach, prove_cap_holds
from tests.fakes import make_completion, make_prompt


class FakeEngines:
    """Engines whose logprobs depend on the bytes last loaded, unless told otherwise."""

    def __init__(self, logprob_of):
        self._logprob_of = logprob_of
        self.loaded = []
        self.engines = self.generate = self

    def load_adapter(self, ref, packed):
        self.loaded.append(bytes(packed))

    def ask(self, call):
        return {(0, self): call(self)}

    def fetch(self, reference):
        return reference

    def remote(self, prompt, n, sampling, version):
        completion = make_completion(num_tokens=2)
        logprobs = np.full(2, self._logprob_of(self.loaded), dtype=np.float32)
        return (replace(completion, behaviour_logprobs=logprobs),)


@pytest.fixture
def packed():
    import torch

    return adapters.pack({"a.lora_A.weight": torch.ones(2, 2)}, {"r": 2}).tobytes()


def prove(engines, packed):
    prove_adapters_reach(engines, adapters.make_ref(packed, 0), packed, prompt=make_prompt())


def test_an_engine_that_uses_its_adapter_passes(packed):
    engines = FakeEngines(lambda loaded: -0.5 if loaded[-1] == packed else -0.9)
    prove(engines, packed)
    assert [item == packed for item in engines.loaded] == [True, False, True]


def test_a_model_that_is_sure_of_its_tokens_is_asked_under_larger_noise(packed):
    import torch

    def logprob(loaded):
        (tensor,) = adapters.unpack(loaded[-1])[0].values()
        return -0.5 if (tensor - torch.ones(2, 2)).abs().max() < 0.4 else -0.9

    engines = FakeEngines(logprob)
    prove(engines, packed)
    assert [item == packed for item in engines.loaded] == [True, False, True] * 2


def test_an_engine_that_ignores_the_adapter_is_found_out(packed):
    with pytest.raises(RuntimeError, match="engine 0 ignores the adapter"):
        prove(FakeEngines(lambda loaded: -0.5), packed)


def test_an_engine_that_keeps_the_probe_is_found_out(packed):
    with pytest.raises(RuntimeError, match="engine 0 does not return to adapter version 0"):
        prove(FakeEngines(lambda loaded: -0.5 if len(loaded) == 1 else -0.9), packed)


def test_an_engine_lost_between_the_probes_is_left_out_and_with_none_left_all_begins_anew(packed):
    engines = FakeEngines(lambda loaded: -0.5 if loaded[-1] == packed else -0.9)
    names = iter("aabccc")
    engines.ask = lambda call: {(0, next(names)): call(engines)}
    prove(engines, packed)
    assert len(engines.loaded) == 6


def test_distance_compares_up_to_the_first_different_token():
    first = make_completion(num_tokens=3)
    second = replace(
        first,
        token_ids=np.array([10, 99, 12], dtype=np.int32),
        behaviour_logprobs=np.array([-0.5, -0.7, -9.0], dtype=np.float32),
    )
    assert logprob_distance(first, second) == pytest.approx(0.2)
    assert logprob_distance(first, first) == 0.0


def test_completions_that_part_at_once_are_infinitely_far():
    first = make_completion(num_tokens=1)
    assert logprob_distance(first, replace(first, token_ids=np.array([99], dtype=np.int32))) == float("inf")


CAP = HardCap(num_tokens=2, forced_token_ids=np.array([8, 9], dtype=np.int32), answer_tokens=1)


def capped(token_ids, forced):
    completion = make_completion(num_tokens=len(token_ids))
    return replace(completion, token_ids=np.array(token_ids, dtype=np.int32), forced=np.array(forced, dtype=bool))


@pytest.mark.parametrize(
    ("token_ids", "forced", "problem"),
    [
        ([1, 2, 8, 9, 5], [0, 0, 1, 1, 0], None),
        ([1, 2, 8, 9], [0, 0, 1, 1], None),
        ([1, 2, 3, 4, 5], [0, 0, 0, 0, 0], "expected forced tokens at 2 to 3, got them at []"),
        ([1, 2, 3, 8, 9], [0, 0, 0, 1, 1], "expected forced tokens at 2 to 3, got them at [3, 4]"),
        ([1, 2, 8, 7, 5], [0, 0, 1, 1, 0], "expected the forced tokens [8, 9], got [8, 7]"),
        ([1, 2, 8, 9, 5, 6], [0, 0, 1, 1, 0, 0], "expected at most 1 tokens of an answer, got 2"),
    ],
)
def test_a_cap_that_does_not_hold_is_described(token_ids, forced, problem):
    assert cap_problem(capped(token_ids, forced), CAP) == problem


def test_an_engine_that_runs_past_the_cap_is_found_out():
    engines = FakeEngines(lambda loaded: -0.5)
    engines.remote = lambda prompt, n, sampling, version, cap: (make_completion(num_tokens=sampling.max_tokens),)
    with pytest.raises(RuntimeError, match="engine 0 does not keep a hard cap of 2 tokens: expected forced tokens"):
        prove_cap_holds(engines, CAP, make_prompt(), version=-1)
