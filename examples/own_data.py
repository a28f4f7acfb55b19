"""Your own file of questions, from file to report: SFT on built-in traces, then RL on your questions.

The file has names of its own, a text around the answer, and one row that cannot be verified: the plan says so.
"""

import json
import random
from pathlib import Path

import terse


def write_tasks(path: Path, num_rows: int, seed: int) -> Path:
    """Rows such as `{"Problem": "Work out 12+7-5", "Solution": "... #### 14"}`."""
    rng = random.Random(seed)
    rows = []
    for _ in range(num_rows):
        first, second, third = rng.randint(20, 99), rng.randint(0, 99), rng.randint(0, 20)
        rows.append({"Problem": f"{first}+{second}-{third}=?", "Solution": f"So #### {first + second - third}"})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def main() -> None:
    directory = Path("runs/own_data_files")
    directory.mkdir(parents=True, exist_ok=True)
    mine = write_tasks(directory / "mine.jsonl", 20, seed=1)
    with mine.open("a") as file:
        file.write(json.dumps({"Problem": "1+1=?", "Solution": "So #### }{"}) + "\n")
    settings = {
        "run.name": "own_data",
        "data.train.source": mine,
        "data.evaluation.source": write_tasks(directory / "held_out.jsonl", 20, seed=2),
        "sft.num_steps": 60,
        "rl.num_steps": 10,
        "evaluation.num_tasks": 20,
        "heads.num_tasks": 0,
        "scaling.num_tasks": 0,
    }
    for name in ("train", "evaluation"):
        settings |= {
            f"data.{name}.question_template": "{Problem}",
            f"data.{name}.answer_field": "Solution",
            f"data.{name}.answer_pattern": r"####\s*(\S+)",
        }
    plan = terse.plan(terse.load_config("quickstart", settings))
    for name, found in plan.unverifiable.items():
        print(
            f"{name}: {found.num_references} references, {found.num_unverifiable} cannot be verified", *found.examples
        )
    write_tasks(mine, 20, seed=1)  # the bad row is gone
    result = terse.run(terse.load_config("quickstart", settings))
    for policy, numbers in result.summary["stages"].items():
        print(f"{policy:5} {numbers['accuracy']:.0%} right, {numbers['mean_tokens']:.0f} tokens")
    print(f"report: {result.report}")


if __name__ == "__main__":
    main()
