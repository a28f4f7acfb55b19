"""`ledger.jsonl` of a run: what became of every prompt of RL, one line per step, so that none is lost or taken twice.

    {"step": 7, "trained": [24, 26], "dropped": [25], "unfinished": [27, 28], "next_index": 29}

Numbers are indices of the seeded prompt stream. `unfinished` were handed out and are still being made; `next_index` is
the first one that was never handed out.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from actors.types import DroppedGroup, RolloutGroup
from orchestrator.record.checkpoint import TaskCursor
from orchestrator.record.run_files import LEDGER_FILE, append_line, read_lines


def append(
    run_dir: Path, step: int, trained: Iterable[RolloutGroup], dropped: Iterable[DroppedGroup], cursor: TaskCursor
) -> None:
    """On disk when this returns; `cursor` is how the stream stands after the step."""
    row = {
        "step": step,
        "trained": sorted(group.group_id for group in trained),
        "dropped": sorted(group.group_id for group in dropped),
        "unfinished": list(cursor.unfinished),
        "next_index": cursor.next_index,
    }
    append_line(run_dir / LEDGER_FILE, row)


def read(run_dir: Path) -> list[dict[str, Any]]:
    """Oldest first; empty when there is none. Raises ValueError naming file and line of a damaged one."""
    return read_lines(run_dir / LEDGER_FILE)


def problems(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Steps that are not consecutive from 1, prompts taken twice, and prompts lost; empty when all is well.

    Trained 0 and 2, dropped 1, next 4, none unfinished → `["step 1: prompt 3 is lost"]`.
    """
    found = []
    steps = [row["step"] for row in rows]
    if steps != list(range(1, len(rows) + 1)):
        found.append(f"expected steps 1 to {len(rows)}, each once, found {steps}")
    num_ends: Counter[int] = Counter()
    for row in rows:
        num_ends.update([*row["trained"], *row["dropped"]])
        named = num_ends.keys() | set(row["unfinished"])
        lost = sorted(set(range(row["next_index"])) - named)
        found += [f"step {row['step']}: prompt {index} is lost" for index in lost]
        redone = sorted(num_ends.keys() & set(row["unfinished"]))
        found += [f"step {row['step']}: prompt {index} was finished and is being made again" for index in redone]
    found += [f"prompt {index} was finished {count} times" for index, count in sorted(num_ends.items()) if count > 1]
    return found
