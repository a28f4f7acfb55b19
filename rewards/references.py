"""Whether a reference answer can be judged against at all."""

from rewards.base import AnswerVerdict, BadReference, Outcome, Reference
from rewards.math_answer import check_reference


def judge_reference(text: str, reference: Reference) -> AnswerVerdict:
    """A verifier for `actors.scoring_process.Scorer` whose texts are reference answers, so that they are read under the
    deadline of completions. CORRECT when completions can be judged against `text`; else UNPARSABLE, and the verdict's
    answer says why. The second argument is not used."""
    problem = reference_problem(text)
    return AnswerVerdict(outcome=Outcome.UNPARSABLE if problem else Outcome.CORRECT, answer=problem)


def reference_problem(reference_answer: str) -> str:
    """Why no completion could be right for this reference answer; empty when one can.

    Examples: `3/4`, `['1', '2']`, `5 (five)` → empty; `nan`, `I think it is forty` → a reason.
    """
    try:
        check_reference(reference_answer)
    except BadReference as error:
        return str(error)
    return ""
