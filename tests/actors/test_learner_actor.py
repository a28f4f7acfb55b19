"""The light actor has the calls of the rank that it stands for."""

import inspect

from actors.learner_actor import CALLS, LearnerActor
from actors.rollout_rank import RolloutRank


def test_every_call_is_a_method_of_the_rank_and_of_the_actor():
    of_rank = {name for name, _ in inspect.getmembers(RolloutRank, inspect.isfunction) if not name.startswith("_")}
    assert set(CALLS) <= of_rank
    assert of_rank - set(CALLS) == {"sequence_logprobs"}, "which no other process asks for"
    assert {name for name, _ in inspect.getmembers(LearnerActor, inspect.isfunction)} == {*CALLS, "__init__"}
