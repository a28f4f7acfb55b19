"""Tables as texts."""

import pytest

from orchestrator.report.tables import Table, cap_tables

TABLE = Table(columns=("", "accuracy", "tasks"), rows=(("base", "9%", "4"), ("after RL", "98.2%", "400")))


def test_columns_are_aligned_for_a_terminal():
    assert TABLE.lines() == [
        "          accuracy  tasks",
        "base      9%        4",
        "after RL  98.2%     400",
    ]
    assert TABLE.without("accuracy").rows == (("base", "4"), ("after RL", "400"))


def test_a_row_of_another_length_is_refused():
    with pytest.raises(ValueError, match="expected 2 cells"):
        Table(columns=("a", "b"), rows=(("1",),))


def test_caps_stand_in_order_no_cap_last_and_gaps_stay_empty():
    (table,) = cap_tables({"after SFT": {100: "80%", 50: "40%", None: "97%"}, "trial": {50: "90%", None: "98%"}})
    assert table.columns == ("cap", "50", "100", "none")
    assert table.rows == (("after SFT", "40%", "80%", "97%"), ("trial", "90%", "", "98%"))
    assert cap_tables({"after SFT": {None: "97%"}}) == []
