import pytest

from tests.faults.soak import MIN_LIFE_S, Memory, growth_problems

MIB = 2**20


def test_growth_is_found_within_lives_whatever_their_levels():
    memory = Memory()
    for process, level_mib in ((1, 100), (2, 900)):
        memory.by_process[process] = [(age_s, (level_mib + age_s // 36) * MIB) for age_s in range(36, 3600, 36)]
    figures = memory.figures()
    assert figures["mib_per_hour"] == pytest.approx(100.0, abs=0.1)
    assert figures["num_processes"] == 2
    assert figures["longest_s"] == 98 * 36


def test_lives_of_different_sizes_that_do_not_grow_are_flat():
    memory = Memory()
    for process, level_mib in ((1, 100), (2, 300), (3, 500)):
        memory.by_process[process] = [(age_s, level_mib * MIB) for age_s in range(30, 200, 5)]
    assert memory.figures()["mib_per_hour"] == 0.0


def test_growth_above_a_tenth_of_the_mean_is_a_problem():
    def row(mib_per_hour):
        return {"mean_mib": 500.0, "mib_per_hour": mib_per_hour, "longest_s": MIN_LIFE_S}

    assert growth_problems({"driver": row(49.0), "learner": row(-200.0)}) == []
    (problem,) = growth_problems({"driver": row(49.0), "learner": row(51.0)})
    assert "learner" in problem
    assert "51.0 MiB an hour" in problem


def test_a_role_watched_too_briefly_cannot_be_judged():
    short = {"mean_mib": 500.0, "mib_per_hour": 0.0, "longest_s": MIN_LIFE_S - 1}
    for role, row in {"reward": short, "learner": {}}.items():
        (problem,) = growth_problems({role: row})
        assert role in problem
        assert "--calm-minutes" in problem
