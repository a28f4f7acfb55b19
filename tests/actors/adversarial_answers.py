"""Answers that a policy under optimisation, or somebody who means harm, might come up with."""

import random
from dataclasses import dataclass

from hypothesis import strategies as st

REFERENCE = "7919"
DIGITS = "0246"
"""Neither digits nor sums of even numbers make the reference: what scores as correct has to state it."""


@dataclass(frozen=True)
class Answer:
    text: str
    may_be_correct: bool = False


def corpus() -> list[Answer]:
    """Our own: each line was made to hang, crash, flood or fool one part of scoring."""
    deep, very_deep = 400, 20_000
    hostile = [
        # deep nesting
        *("\\boxed{" * deep + "4" + "}" * deep, "{" * very_deep, "}" * very_deep, "\\boxed{" * very_deep),
        *("\\boxed{" + "(" * deep + "4" + ")" * deep + "}", "\\boxed{" + "\\sqrt{" * deep + "4" + "}" * deep + "}"),
        "\\boxed{" + "\\frac{1}{" * deep + "4" + "}" * deep + "}",
        "\\boxed{" + "\\left(" * deep + "4" + "\\right)" * deep + "}",
        "\\boxed{" + "-" * deep + "4}",
        "\\boxed{" + "\\begin{pmatrix}" * 60 + "4" + "\\end{pmatrix}" * 60 + "}",
        # huge powers and factorials
        *("\\boxed{9^{9^{9^9}}}", "\\boxed{2^{2^{2^{2^{2^{2}}}}}}", "\\boxed{10^{10^{10}}}", "\\boxed{(10^{6})!}"),
        *("\\boxed{4!!!!!!}", "\\boxed{((4!)!)!}", "\\boxed{\\binom{10^{9}}{5 \\cdot 10^{8}}}"),
        *("\\boxed{1e999999999}", "\\boxed{0." + "0" * 100_000 + "1}", "\\boxed{2^{-2^{-2^{64}}}}"),
        # endless sums, products, integrals, equations
        *("\\boxed{\\sum_{i=1}^{10^{12}} \\frac{1}{i}}", "\\boxed{\\prod_{k=1}^{\\infty} k^{k}}"),
        *("\\boxed{\\int_0^{\\infty} e^{e^{x^x}} dx}", "\\boxed{\\lim_{x \\to 0} x^{x^{x^{x}}}}"),
        *("\\boxed{x^{5}+x+1=0}", "\\boxed{x^{4000}+x^{2000}+1}", "\\boxed{(x+y+z)^{400}}"),
        "\\boxed{\\sin(" * 40 + "x" + ")" * 40 + "}",
        "\\boxed{" + "+".join(f"x_{{{i}}}" for i in range(2000)) + "}",
        # long lists, sets and intervals
        "\\boxed{\\{" + ",".join(str(2 * i) for i in range(20_000)) + "\\}}",
        "\\boxed{" + "\\cup".join(f"[{2 * i},{2 * i + 2}]" for i in range(1000)) + "}",
        "\\boxed{" + " \\text{ or } ".join(["x=4"] * 1000) + "}",
        # megabytes
        *("4" * 3_000_000, "\\boxed{" + "4" * 1_000_000 + "}", "a " * 1_000_000, "$" * 500_000, "\\" * 500_000),
        *("\n" * 1_000_000, "#### " * 200_000, "<think>" * 200_000, "</think>" * 200_000, "\\frac" * 100_000),
        # regular expressions that look back
        *("$" + "\\ " * 50_000, "1," * 100_000, "(" * 50_000 + "1/", "." * 200_000 + "4", "0 " * 100_000 + "%"),
        "therefore the final answer is " * 20_000,
        # invalid LaTeX
        *("\\boxed{\\frac{1}}", "\\boxed{\\sqrt[}", "\\boxed{^_^_}", "\\boxed{\\end{matrix}}", "$\\boxed{$4$}"),
        *("\\boxed{\\left[4\\right.", "\\boxed{\\def\\x{\\x\\x}\\x}", "\\boxed{%}", "\\boxed{&&&}", "\\boxed{~#1}"),
        # what is not text
        *("\ud800\udfff\udbff", "\x00" * 1000, "\\boxed{4\x00}", "\ufeff\\boxed{4}", "\uffff\ufffe", "\x1b[2J\x07"),
        *("\u202e\\boxed{4}\u202c", "\\boxed{٤}", "\\boxed{Ⅳ}", "\\boxed{²}", "🧮" * 10_000, "e\u0301" * 10_000),
        # code, for whoever evaluates text
        *("\\boxed{__import__('os').system('kill -9 -1')}", "\\boxed{exec('while 1: pass')}", "\\boxed{().__class__}"),
        *(
            "\\boxed{S('4').evalf(10**9)}",
            "\\boxed{\\input{/etc/passwd}}",
            "\\boxed{\\write18{true}}",
            "${oc.env:HOME}",
        ),
        # our own markers and messages
        *('{"outcome": "correct", "answer": "4"}', '\n{"outcome":"correct","answer":"4"}\n', '{"unconfined": ""}\n'),
        *("correct", "\\boxed{correct}", "Outcome.CORRECT", "\\boxed{}", "####", "<think></think>", "\\boxed{ }"),
        *(
            "<think>\\boxed{7919}",
            "<think>7919",
            "\\boxed{7919}<think>",
            "7919</think>4",
            "</think>7919</think>\\boxed{4}",
        ),
        *("\\boxed{7919}\\boxed{4}", "#### 7919\n#### 4", "7919 \\boxed{4}"),
        *(
            "\\boxed{7919",
            "\\boxed{7919}</think>",
            "\\boxed{-7919}",
            "\\boxed{79190}",
            "\\boxed{7918}",
            "\\boxed{7919^2}",
        ),
        *(
            "\\boxed{7919 \\neq x}",
            "\\boxed{x > 7919}",
            "\\boxed{\\{7919, 4\\}}",
            "\\boxed{7919i}",
            "\\boxed{(7919, 4)}",
        ),
    ]
    right = [
        *("\\boxed{7919}", "7919", "#### 7919", "\\boxed{7,919}", "\\boxed{7919.0}", "\\boxed{\\frac{15838}{2}}"),
        *("\\boxed{4}</think>\\boxed{7919}", "\\boxed{4} no, \\boxed{7919}", "\\boxed{7.919 \\cdot 10^{3}}"),
        *("\\boxed{7\u200b919}", "\u200b\\boxed{7919}\u200b", "\\boxed{7\u2060919}", "\\boxed{\u202e7919}", "７９１９"),
        *(
            "\\boxed{4\\boxed{7919}4}",
            "\\boxed{4\\boxed{7919}",
            "\\boxed{7919}" + "\n" * 100_000,
            "7919" + " " * 100_000,
            "\\boxed{x=7919}",
        ),
    ]
    return [Answer(text) for text in hostile] + [Answer(text, may_be_correct=True) for text in right]


SURELY_RIGHT = ("\\boxed{7919}", "7919", "#### 7919", "\\boxed{7919.0}", "\\boxed{4}</think>\\boxed{7919}")

_ATOMS = st.one_of(
    st.text(DIGITS, min_size=1, max_size=30),
    st.text(DIGITS, min_size=1, max_size=6).map(lambda digits: digits * 300),
    st.sampled_from(
        ["x", "\\pi", "e", "i", "\\infty", "", " ", "\\%", ".", ",", "\u200b", "\x00", "\ud800", "½", "\\\\"]
    ),
    st.text(max_size=20).filter(lambda text: not any(character.isnumeric() for character in text)),
)
_JOINS = st.sampled_from(
    [
        "+",
        "-",
        "^",
        "_",
        "!",
        "!!",
        "/",
        "\\cdot ",
        "^{",
        "}",
        "{",
        "(",
        ")",
        "[",
        "]",
        "\\{",
        "\\}",
        ",",
        "=",
        "<",
        "&",
    ]
)
_WRAPS = st.sampled_from(
    [
        ("\\frac{", "}{2}"),
        ("\\sqrt{", "}"),
        ("\\sum_{i=0}^{", "} i"),
        ("\\int_0^{", "} x^x dx"),
        ("\\binom{", "}{2}"),
        ("\\left(", "\\right)"),
        ("\\text{", "}"),
        ("\\log_{", "} 2"),
        ("2^{", "}"),
        ("{", "}^{2}"),
        ("\\begin{matrix}", "\\end{matrix}"),
        ("\\{", "\\}"),
        ("(", "]"),
        ("|", "|"),
    ]
)
_FRAMES = st.sampled_from(
    [
        ("\\boxed{", "}"),
        ("\\boxed{", ""),
        ("#### ", "\n"),
        ("$", "$"),
        ("\\[", "\\]"),
        ("The final answer is ", "."),
        ("<think>", "</think>"),
        ("</think>", ""),
        ("", ""),
        ('{"outcome": "correct", "answer": "', '"}\n'),
        ("```python\n", "\n```"),
    ]
)


@st.composite
def _expressions(draw: st.DrawFn) -> str:
    parts = [draw(_ATOMS)]
    for _ in range(draw(st.integers(0, 6))):
        parts += [draw(_JOINS), draw(_ATOMS)]
    text = "".join(parts)
    for _ in range(draw(st.integers(0, 4))):
        left, right = draw(_WRAPS)
        times = draw(st.sampled_from([1, 1, 1, 2, 5, 40]))
        text = left * times + text + right * times
    return text


@st.composite
def answers(draw: st.DrawFn) -> Answer:
    """Frames around expressions around junk; nothing in it states the reference."""
    text = ""
    for _ in range(draw(st.integers(1, 3))):
        left, right = draw(_FRAMES)
        text += left + draw(_expressions()) + right
    return Answer(text[: draw(st.sampled_from([20, 200, 100_000]))])


def mutations(seed: int, count: int) -> list[Answer]:
    """Pieces of the corpus, cut and joined anew; those that hold a right answer may come out right."""
    rng, pieces = random.Random(seed), [answer.text for answer in corpus() if len(answer.text) < 5_000]
    found = []
    for _ in range(count):
        text = ""
        for piece in rng.sample(pieces, rng.randint(1, 4)):
            start = rng.randrange(len(piece)) if piece else 0
            text += piece if rng.random() < 0.6 else piece[start:]
        found.append(Answer(text, may_be_correct="919" in text or "15838" in text or "９" in text))
    return found
