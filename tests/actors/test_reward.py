"""The reward actor over real scoring processes, with real and injected hangs, crashes and floods."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from actors.judges import LABEL, Judge
from actors.reward import RewardActor
from actors.scoring_process import MAX_ANSWER_CHARS, OWNER_GONE_GRACE_S, Scorer
from actors.types import Completion, Prompt, Task
from configs.errors import UserError
from configs.schema.run import RewardSection
from rewards.base import Outcome, Reference
from tests.fakes import make_request

HOSTILE = Judge(name="hostile_verifiers:verify_unless_told_otherwise")
HANGS_MATH_VERIFY = "<think>big</think>\\boxed{9^{9^{9^9}}}"
DEADLINE_S = 1.0

TASK = Task(task_id="t/1", messages=({"role": "user", "content": "37+58-12=?"},), reference_answer="83", source="test")
PROMPT = Prompt(task_id="t/1", token_ids=np.arange(3, dtype=np.int32), budget_tokens=100, start=2)
REQUEST = replace(make_request(PROMPT), task=TASK)


def make_completion(text: str, num_tokens: int = 10, finish_reason: str = "stop") -> Completion:
    return Completion(
        token_ids=np.zeros(num_tokens, dtype=np.int32),
        behaviour_logprobs=np.zeros(num_tokens, dtype=np.float32),
        forced=np.zeros(num_tokens, dtype=bool),
        text=text,
        finish_reason=finish_reason,
        policy_version=0,
        adapter_sha256="",
        num_thinking_tokens=num_tokens,
    )


@pytest.fixture
def hostile_scorer(monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parent)
    scorer = Scorer(DEADLINE_S, [HOSTILE])
    yield scorer
    scorer.close()


@pytest.fixture(scope="module")
def actor():
    actor = RewardActor(RewardSection(deadline_s=DEADLINE_S))
    yield actor
    actor.close()


def outcomes(scorer: Scorer, texts: list[str]) -> list[Outcome]:
    return [verdict.outcome for verdict in scorer.verify(texts, Reference(answer="83"), HOSTILE)]


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_a_group_is_scored_in_its_order_with_its_components(actor):
    texts_and_lengths = [
        ("<think>95-12</think>83", 80),
        ("84", 80),
        ("<think>83", 80),
        ("\\boxed{83}", 200),
        ("83", 50),
    ]
    completions = [make_completion(text, length) for text, length in texts_and_lengths]
    rollouts = actor.score_group(REQUEST, completions)
    assert [rollout.num_tokens for rollout in rollouts] == [length for _, length in texts_and_lengths]
    assert not any(hasattr(rollout, "text") or hasattr(rollout, "token_ids") for rollout in rollouts)
    samples = actor.score_group(replace(REQUEST, returns="samples"), completions)
    assert [sample.text for sample in samples] == [text for text, _ in texts_and_lengths]
    assert [sample.reward for sample in samples] == [rollout.reward for rollout in rollouts]
    rewards = [rollout.reward for rollout in rollouts]
    assert [reward.outcome.value for reward in rewards] == ["correct", "wrong", "unparsable", "correct", "correct"]
    assert [reward.value for reward in rewards] == pytest.approx([0.7, 0, 0, 0, 1])
    assert [reward.answer for reward in rewards] == ["83", "84", "", "83", "83"]
    assert rewards[0].breakdown == {"accuracy": 1.0, "length": pytest.approx(0.7)}
    assert rewards[3].breakdown == {"accuracy": 1.0, "length": 0.0}


def test_the_length_reward_is_told_which_completions_were_cut():
    actor = RewardActor(RewardSection(deadline_s=DEADLINE_S, length="dler"))
    try:
        completions = [make_completion("83", 80), make_completion("83", 80, finish_reason="length")]
        rollouts = actor.score_group(REQUEST, completions)
    finally:
        actor.close()
    assert [rollout.reward.value for rollout in rollouts] == [1.0, 0.0]


def test_an_empty_group_has_no_rollouts(actor):
    assert actor.score_group(REQUEST, []) == ()


def test_text_of_any_kind_and_size_passes_through(actor):
    texts = [
        "",
        "\x00\n\r",
        "\ud800 83",
        "½ \u2028 83",
        "x" * 2_000_000 + " \\boxed{83}",
        "\\boxed{" + "8" * 300_000 + "}",
    ]
    rewards = [rollout.reward for rollout in actor.score_group(REQUEST, [make_completion(text) for text in texts])]
    assert [reward.outcome.value for reward in rewards] == [
        "unparsable",
        "unparsable",
        "correct",
        "correct",
        "correct",
        "wrong",
    ]


def test_a_completion_that_really_hangs_math_verify_times_out_and_the_rest_is_scored(actor):
    texts = ["83", HANGS_MATH_VERIFY, "\\boxed{\\frac{166}{2}}", "84"]
    started = time.monotonic()
    rollouts = actor.score_group(REQUEST, [make_completion(text) for text in texts])
    elapsed_s = time.monotonic() - started
    assert [rollout.reward.outcome.value for rollout in rollouts] == ["correct", "timeout", "correct", "wrong"]
    assert rollouts[1].reward.value == 0
    assert rollouts[1].reward.breakdown["accuracy"] == 0
    assert elapsed_s >= DEADLINE_S


def test_the_actor_still_answers_after_a_kill(actor):
    pid = actor.ping()
    actor.score_group(REQUEST, [make_completion(HANGS_MATH_VERIFY)])
    assert actor.ping() != pid
    assert not is_running(pid)


def test_a_reference_answer_that_cannot_be_parsed_names_task_and_answer_and_spoils_nothing(actor):
    task = Task(task_id="t/1", messages=(), reference_answer="}{", source="test")
    with pytest.raises(ValueError, match=r"task t/1: reference answer '}\{'"):
        actor.score_group(replace(REQUEST, task=task), [make_completion("\\boxed{x}")] * 4)
    assert [r.reward.outcome for r in actor.score_group(REQUEST, [make_completion("83")])] == [Outcome.CORRECT]


def test_a_prompt_of_another_task_is_refused(actor):
    other = Prompt(task_id="t/2", token_ids=PROMPT.token_ids, budget_tokens=None, start=2)
    with pytest.raises(ValueError, match="expected a prompt of task t/1, got one of t/2"):
        actor.score_group(replace(REQUEST, prompt=other), [])


def test_hostile_completions_cost_only_themselves_among_a_thousand_healthy_ones(hostile_scorer):
    hostile = {
        3: ("HANG", Outcome.TIMEOUT),
        4: ("HANG IN C", Outcome.TIMEOUT),
        200: ("SLEEP", Outcome.TIMEOUT),
        201: ("EXIT", Outcome.CRASHED),
        202: ("KILL", Outcome.CRASHED),
        500: ("MEMORY", Outcome.ERROR),
        501: ("RAISE", Outcome.ERROR),
        1006: (HANGS_MATH_VERIFY, Outcome.TIMEOUT),
    }
    texts = [hostile[i][0] if i in hostile else str(83 + i % 2) for i in range(1008)]
    expected = [
        hostile[i][1] if i in hostile else (Outcome.WRONG if i % 2 else Outcome.CORRECT) for i in range(len(texts))
    ]
    assert outcomes(hostile_scorer, texts) == expected


def test_what_a_process_sends_is_a_verdict_or_counts_as_a_crash(hostile_scorer):
    sent = [
        "[1]",
        "x",
        "{}",
        "[" * 60_000,
        '{"outcome": "crashed", "answer": ""}',
        '{"outcome": "correct", "answer": 3}',
    ]
    sent += [json.dumps({"outcome": "correct", "answer": "8" * 501})]
    for text in [*(f"SAY {line}" for line in sent), "FLOOD"]:
        assert outcomes(hostile_scorer, [text, "83"]) == [Outcome.CRASHED, Outcome.CORRECT]


def test_a_very_long_reference_answer_that_is_refused_is_no_crash(hostile_scorer):
    with pytest.raises(ValueError, match="expected one of A, B, found"):
        hostile_scorer.verify(["A"], Reference(answer="C" * 100_000, labels=("A", "B")), HOSTILE)


def test_a_verifier_of_ones_own_reaches_nothing_outside_and_says_what_it_raised(hostile_scorer, caplog):
    texts = ["FORK", "READ", "PRINT", "NONSENSE", "83"]
    expected = [Outcome.ERROR, Outcome.ERROR, Outcome.CORRECT, Outcome.ERROR, Outcome.CORRECT]
    assert outcomes(hostile_scorer, texts * 2) == expected * 2
    logged = [record.getMessage() for record in caplog.records if "verifier raised" in record.getMessage()]
    assert len(logged) == 3, "each once"
    assert re.search(r"PermissionError.*hostile_verifiers\.py, line", logged[0])
    assert "expected an AnswerVerdict, True or False from the verifier, found 'yes'" in logged[2]


def test_a_verifier_of_ones_own_is_told_the_question_and_the_fields_of_the_row(monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parent)
    actor = RewardActor(RewardSection(deadline_s=DEADLINE_S), [HOSTILE, LABEL])
    task = replace(TASK, verifier=HOSTILE.name, fields={"hint": [95]})
    try:
        rollouts = actor.score_group(replace(REQUEST, task=task), [make_completion(text) for text in ("QUESTION", "8")])
        choice = replace(TASK, reference_answer="B", labels=("A", "B"))
        labelled = actor.score_group(replace(REQUEST, task=choice), [make_completion("The answer is B.")])
    finally:
        actor.close()
    assert [rollout.reward.outcome for rollout in rollouts] == [Outcome.CORRECT, Outcome.WRONG]
    assert labelled[0].reward.outcome == Outcome.CORRECT


def same_beginning(answer: str, other: str, *, length: int) -> bool:
    return answer[:length] == other[:length]


def test_votes_are_counted_by_a_function_of_ones_own():
    same = Judge(key="scaling.same_answer", name=f"{__name__}:same_beginning", args={"length": 1})
    actor = RewardActor(RewardSection(deadline_s=DEADLINE_S), [same])
    try:
        assert actor.group_answers([["blue", "black", "red", ""]]) == [(0, 0, 1, -1)]
    finally:
        actor.close()


def test_a_group_that_only_crashes_is_all_crashed(hostile_scorer):
    assert outcomes(hostile_scorer, ["KILL"] * 4) == [Outcome.CRASHED] * 4
    assert outcomes(hostile_scorer, ["83"]) == [Outcome.CORRECT]


def test_a_process_that_died_while_idle_is_replaced_and_nobody_is_blamed(hostile_scorer):
    pid = hostile_scorer.ensure_ready()
    os.kill(pid, signal.SIGKILL)
    deadline = time.monotonic() + 5
    while is_running(pid) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert outcomes(hostile_scorer, ["83"]) == [Outcome.CORRECT]


def test_an_interrupted_call_leaves_no_verdicts_for_the_next_one(hostile_scorer):
    previous = signal.signal(signal.SIGALRM, signal.default_int_handler)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.3)
        with pytest.raises(KeyboardInterrupt):
            hostile_scorer.verify(["SLEEP", "83", "83"], Reference(answer="83"), HOSTILE)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
    assert outcomes(hostile_scorer, ["84", "83"]) == [Outcome.WRONG, Outcome.CORRECT]


def test_the_process_after_a_kill_is_the_spare_that_was_there_before(hostile_scorer):
    for _ in range(2):
        spare = hostile_scorer._spare.pid
        assert outcomes(hostile_scorer, ["SLEEP", "83"]) == [Outcome.TIMEOUT, Outcome.CORRECT]
        assert hostile_scorer._at_work.pid == spare


@pytest.mark.parametrize(
    ("verifier", "words"),
    [
        ("no_such_module:verify", "a module that can be imported, .*No module named 'no_such_module'.*on node"),
        ("rewards.math_answer:verify_maths", "a function, .*did you mean verify_math"),
        ("no_colon", "one of math, label, .*or package.module:function, found 'no_colon'"),
    ],
)
def test_a_verifier_that_is_not_there_is_refused_by_its_setting(verifier, words):
    with pytest.raises(UserError, match=rf"reward.verifier: expected {words}"):
        RewardActor(RewardSection(), judges=[Judge(name=verifier)])


def test_a_process_that_does_not_start_says_why(monkeypatch):
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(RuntimeError, match="did not start: it ended, exit status 1"):
        RewardActor(RewardSection())


def test_a_deadline_that_is_none_is_refused():
    with pytest.raises(ValueError, match="deadline_s: expected more than 0, got 0"):
        Scorer(0)


def test_closing_ends_both_processes():
    scorer = Scorer(DEADLINE_S)
    pids = [scorer._at_work.pid, scorer._spare.pid]
    scorer.close()
    assert not any(is_running(pid) for pid in pids)


def test_no_process_outlives_an_owner_that_is_killed_while_a_completion_hangs():
    script = (
        "from actors.judges import Judge\nfrom actors.scoring_process import Scorer\n"
        f"scorer = Scorer({DEADLINE_S}, [Judge(name={HOSTILE.name!r})])\n"
        "scorer._spare.wait_ready()\n"
        "scorer._at_work.send({'texts': ['HANG IN C'], 'other': {'answer': '83', 'labels': []}, 'judge': 0}, 1.0)\n"
        "print(scorer._at_work.pid, scorer._spare.pid, flush=True)\n"
        "scorer._at_work.receive(3600.0)\n"
    )
    search_path = os.pathsep.join([str(Path(__file__).parent), *(path or os.getcwd() for path in sys.path)])
    command = [sys.executable, "-c", script]
    environment = os.environ | {"PYTHONPATH": search_path}
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as owner:
        assert owner.stdout is not None
        pids = [int(pid) for pid in owner.stdout.readline().split()]
        assert [is_running(pid) for pid in pids] == [True, True]
        owner.kill()
    deadline = time.monotonic() + DEADLINE_S + OWNER_GONE_GRACE_S + 3
    while any(is_running(pid) for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(is_running(pid) for pid in pids)


def test_the_owner_never_imports_math_verify_and_the_process_no_heavy_library():
    script = "import sys, {}; print([m for m in ('math_verify', 'torch', 'ray', 'vllm', 'numpy') if m in sys.modules])"
    path = os.pathsep.join(path or os.getcwd() for path in sys.path)
    for module, expected in [("actors.scoring_process", "[]"), ("rewards.math_answer", "['math_verify']")]:
        command = [sys.executable, "-c", script.format(module)]
        result = subprocess.run(
            command, env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True, check=True
        )
        assert result.stdout.strip() == expected


def test_answers_are_grouped_by_value_and_not_by_text(actor):
    answers = [
        ["1/2", "0.5", "50 \\%", "\\frac{1}{2}", "2", ""],
        ["83", "83.0", "83", "84"],
        ["", "", ""],
        ["x+1", "1+x", "1-x"],
        ["no mathematics", "no mathematics", "7"],
    ]
    assert actor.group_answers(answers) == [
        (0, 0, 0, 0, 1, -1),
        (0, 0, 0, 1),
        (-1, -1, -1),
        (0, 0, 1),
        (0, 0, 1),
    ]


def test_a_comparison_that_hangs_is_not_equal(actor):
    assert actor.group_answers([["2", "9^{9^{9^9}}", "2.0"]]) == [(0, 1, 0)]


def test_labels_are_judged_in_the_scoring_process(actor):
    scorer = actor._scorer
    texts = ["The answer is" + " " * 16_000 + "z", "The answer is B.", "SLEEP"]
    found = scorer.verify(texts, Reference(answer="B", labels=("A", "B")), LABEL)
    assert [verdict.outcome for verdict in found] == [Outcome.UNPARSABLE, Outcome.CORRECT, Outcome.UNPARSABLE]
    with pytest.raises(ValueError, match="expected one of A, B, found 'C'"):
        scorer.verify(["A"], Reference(answer="C", labels=("A", "B")), LABEL)


def test_the_scoring_process_sees_no_keys_and_sends_no_long_answers(monkeypatch):
    monkeypatch.setenv("MY_API_KEY", "abcdefgh")
    monkeypatch.setenv("LC_ALL", "C.UTF-8")
    scorer = Scorer(DEADLINE_S)
    try:
        environment = Path(f"/proc/{scorer.ensure_ready()}/environ").read_bytes().split(b"\0")
        assert (
            scorer.verify(["\\boxed{" + "8" * 5_000 + "}"], Reference(answer="83"))[0].answer == "8" * MAX_ANSWER_CHARS
        )
    finally:
        scorer.close()
    names = {entry.partition(b"=")[0] for entry in environment if entry}
    assert b"LC_ALL" in names
    assert b"MY_API_KEY" not in names
    assert b"HOME" not in names
