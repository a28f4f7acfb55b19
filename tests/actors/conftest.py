"""A tiny random model and real learner ranks on it."""

import pytest

from tests.actors.learner_setup import settings_of


@pytest.fixture
def make_rank(random_model_dir):
    """Makes one connected rank at a time; the process group is this process's."""
    from actors.learner import LearnerRank
    from actors.rendezvous import choose_master

    made = []

    def make(**settings):
        while made:
            made.pop().close()
        rank = LearnerRank(rank=0, num_ranks=1, **settings_of(random_model_dir, **settings))
        rank.connect(*choose_master([rank.find_place()]))
        made.append(rank)
        return rank

    yield make
    while made:
        made.pop().close()
