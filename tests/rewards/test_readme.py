"""The rows of the tables in `rewards/README.md` are true."""

import re
from pathlib import Path

import rewards
from rewards.math_answer import verify_answer

ROW = re.compile(r"\| `(.+?)` \| `(.+?)` \| (correct|wrong|unparsable) \|")


def test_the_tables_are_true():
    rows = ROW.findall((Path(rewards.__file__).parent / "README.md").read_text(encoding="utf-8"))
    assert len(rows) > 20
    found = [(text, reference, verify_answer(text, reference).outcome.value) for text, reference, _ in rows]
    assert found == rows
