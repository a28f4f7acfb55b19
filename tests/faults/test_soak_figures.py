import pytest

from tests.faults.soak import Memory

MIB = 2**20


def test_growth_is_found_within_lives_whatever_their_levels():
    memory = Memory()
    for process, level_mib in ((1, 100), (2, 900)):
        memory.by_process[process] = [(age_s, (level_mib + age_s // 36) * MIB) for age_s in range(36, 3600, 36)]
    figures = memory.figures()
    assert figures["mib_per_hour"] == pytest.approx(100.0, abs=0.1)
    assert figures["num_processes"] == 2


def test_lives_of_different_sizes_that_do_not_grow_are_flat():
    memory = Memory()
    for process, level_mib in ((1, 100), (2, 300), (3, 500)):
        memory.by_process[process] = [(age_s, level_mib * MIB) for age_s in range(30, 200, 5)]
    assert memory.figures()["mib_per_hour"] == 0.0
