r"""One way of writing an answer, whatever it was written like; both the completion's and the reference answer pass through.

| kind | examples | becomes |
|---|---|---|
| characters | `−5`, `７２`, `10³`, `4√2`, `90°` | see `rewards.notation.characters` |
| style, boxes, colour | `\text{13}`, `\mathbf{7}`, `\textcolor{red}{42}`, `**13**`, `$7$` | `13`, `7`, `42`, `13`, `7` |
| words before the answer | `Answer: 7`, `\text{ans}=7`, `=7`, `\approx 3.14`, `about 5` | `7`, `7`, `7`, `3.14`, `5` |
| signs in words | `negative 5`, `minus 5` | `-5` |
| currency | `\$7`, `£29.50`, `29 €`, `29 USD` | the number, with the currency as its unit |
| groups of digits | `1,234`, `12{,}345`, `12\,345`, `12 345`, `12,34,567` | `1234`, `12345`, `12345`, `12345`, `1234567` |
| fractions | `\dfrac12`, `\nicefrac{1}{2}` | `\frac{1}{2}` |
| plain mathematics | `2**10`, `sqrt(2)`, `pi/2`, `C(5,2)`, `<=` | `2^{10}`, `\sqrt{2}`, `\pi/2`, `\binom{5}{2}`, `\le` |
| what explains a number | `5 (five)`, `12.` | `5`, `12` |
| lists of a program | `['1', '2']` | `[1, 2]` |

Numbers in words, mixed numbers, scientific notation and units are read by `rewards.notation.quantity`. Every step takes linear time.
"""

import re
from functools import lru_cache

from rewards.notation.characters import plain_characters
from rewards.notation.units import short_unit_name

MAX_ANSWER_CHARS = 2000
"""A longer answer is compared as it stands."""

_STYLES = (
    "text textbf textit textrm texttt textsf textnormal mathrm mathbf mathit mathsf mathtt mathnormal boldsymbol bm pmb "
    "underline underbar emph mbox hbox fbox boxed operatorname displaystyle"
).split()
_STYLE = re.compile(r"\\(?:" + "|".join(_STYLES) + r")\*?\s*\{")
_COLOUR = re.compile(r"\\(?:textcolor|colorbox)\s*\{[^{}]*\}\s*\{")
_BRACE = re.compile(r"\\.|[{}]", re.DOTALL)
_DROPPED = re.compile(
    r"\\(?:displaystyle|textstyle|scriptstyle|limits|left(?![a-z])|right(?![a-z])|[bB]igg?[lrm]?(?![A-Za-z])|bf|rm|it|sf|tt|"
    r"bfseries|itshape)(?![A-Za-z])|\\color\s*\{[^{}]*\}|\\!"
)
_SPACES = re.compile(r"\\(?:[,;: ]|quad(?![A-Za-z])|qquad(?![A-Za-z]))|~")
_THIN_GROUP = re.compile(r"(?<=\d)(?:\\[,;: !]|~|\{[, ]\})\s?(?=\d{3}(?!\d))")
_COMMA_THIN = re.compile(r",(?:\s?\\[!,])+\s?(?=\d)|\{,\}")
_FRACTION = re.compile(r"\\(?:[dtc]frac|sfrac|nicefrac)(?![a-zA-Z])")
_SHORT_FRACTION = re.compile(r"\\frac\s*(?:(\d)\s*(\d)|(\d)\s*\{([^{}]*)\}|\{([^{}]*)\}\s*(\d))(?!\})")
_LEAD_IN = re.compile(
    r"\s*(?:(?:so|thus|hence|therefore|then)\b[\s,]{0,3})?(?:(?:the|our|my)\s{1,3})?(?:(?:final|correct|right)\s{1,3})?"
    r"(?:answer|ans|result|solution|total|答案|结果)(?![A-Za-z])\s{0,3}(?:(?:is|was|equals|are|是|为)(?![A-Za-z]))?"
    r"\s{0,3}(?:[:=]\s{0,3})?(?=\S)",
    re.IGNORECASE,
)
_LABEL = re.compile(r"[A-Za-z][A-Za-z ]{2,40}:\s{0,3}(?=\S)")
_ABOUT = re.compile(
    r"\s*(?:\\approx(?![a-z])|\\sim(?![a-z])|≈|=|(?:approximately|about|around|roughly|approx\.?|circa|equals|equal to|is)\b(?!\s*[=:]))\s*",
    re.IGNORECASE,
)
_NEGATIVE = re.compile(r"^\s*(?:negative|minus)\s+(?=[\d\\$.a-z])", re.IGNORECASE)
_MARKUP = ("**", "__", "==", "``", "*", "_", "`", '"', "'")
_GROUPED = re.compile(
    r"(?<![\d.,])(?:\d{1,3}(?:,\d{3})+|\d{1,2}(?:,\d{2})+,\d{3}|\d{1,3}(?: \d{3})+|\d{1,3}(?:'\d{3})+|\d{1,3}(?:_\d{3})+)(?=\.\d|(?!\s?[\d,]|\.\d))"
)
_EUROPEAN = re.compile(r"\d{1,3}(?:\.\d{3}){2,}")
_FUNCTION = re.compile(
    r"(?<![\\A-Za-z])(sqrt|sin|cos|tan|cot|sec|csc|log|ln|exp|arcsin|arccos|arctan|sinh|cosh|tanh|pi|theta|alpha|beta|gamma|"
    r"lambda|phi|omega|infty|inf|infinity|binom|frac|cdot|times)(?![A-Za-z])"
)
_FUNCTION_NAMES = {"inf": "infty", "infinity": "infty"}
_ROOT_OF_BRACKET = re.compile(r"\\sqrt\s*\(([^()]*)\)")
_CHOOSE = re.compile(r"(?<![A-Za-z\\])[Cc]\((\d+),\s*(\d+)\)|(?<![\w}])(\d+)[Cc](\d+)(?!\w)")
_POWER = re.compile(r"\^\s*(-?\d{2,}|\(-?\d+\))")
_QUOTED_ITEM = re.compile(r"(?<=[\[,(])\s*(['\"])([^'\"]*)\1\s*(?=[\],)])")
_DEGREES = re.compile(r"\^\s*\{?\s*\\circ\s*\}?\s*([CF])(?![A-Za-z])")


@lru_cache(maxsize=4096)
def normal_form(answer: str) -> str:
    r"""The answer in the one way of writing it; see the table above.

    An answer over `MAX_ANSWER_CHARS` only loses the white space around it.
    """
    if len(answer) > MAX_ANSWER_CHARS:
        return answer.strip()
    text = _COMMA_THIN.sub(",", plain_characters(answer))
    text = _THIN_GROUP.sub(" ", text)
    text = _without_styles(_SPACES.sub(" ", _DROPPED.sub("", text)))
    text = _without_delimiters(text)
    text = _QUOTED_ITEM.sub(r"\2", text) if text[:1] == "[" else text
    text = _without_lead_in(text)
    text = _SHORT_FRACTION.sub(_whole_fraction, _FRACTION.sub(r"\\frac", text))
    text = _plain_mathematics(text)
    text = _EUROPEAN.sub(lambda match: match.group().replace(".", ""), text) if _EUROPEAN.fullmatch(text) else text
    text = _GROUPED.sub(_joined, text)
    return re.sub(r"\s+", " ", text).strip()


def _joined(match: re.Match[str]) -> str:
    return re.sub(r"[,' _]", "", match.group())


def _without_styles(text: str) -> str:
    r"""`\text{13}` → `13`, whatever it is nested in; a unit of one or two letters gets its full name."""
    if not (_STYLE.search(text) or _COLOUR.search(text)):
        return text
    parts: list[list[str]] = [[]]
    is_style: list[bool] = []
    place = 0
    for match in re.compile(rf"{_COLOUR.pattern}|{_STYLE.pattern}|{_BRACE.pattern}", re.DOTALL).finditer(text):
        parts[-1].append(text[place : match.start()])
        place, token = match.end(), match.group()
        if token == "}" and is_style:
            inner = "".join(parts.pop())
            parts[-1].append(_styled(inner) if is_style.pop() else f"{{{inner}}}")
        elif token.endswith("{") and token != r"\{":
            parts.append([])
            is_style.append(token != "{")
        else:
            parts[-1].append(token)
    parts[-1].append(text[place:])
    while is_style:  # opened and not closed: as it stands
        inner = "".join(parts.pop())
        is_style.pop()
        parts[-1].append(inner)
    return "".join(parts[0])


def _styled(inner: str) -> str:
    word = inner.strip()
    named = short_unit_name(word)
    return f" {named} " if named != word else inner


def _without_delimiters(text: str) -> str:
    r"""Signs around the whole answer: `$…$`, `\(…\)`, `**…**`, quotes, a full stop or comma behind it."""
    before = None
    while text != before:
        before = text
        text = text.strip().rstrip(",;:")
        text = text[:-1] if text.endswith("\\") and not text.endswith("\\\\") else text
        if text.endswith(".") and not text.endswith((r"\ldots.", "..")):
            text = text[:-1]
        for left, right in (("$$", "$$"), ("$", "$"), (r"\(", r"\)"), (r"\[", r"\]")):
            if (
                text.startswith(left)
                and text.endswith(right)
                and len(text) > len(left + right)
                and not text.endswith(r"\$")
            ):
                text = text[len(left) : -len(right)]
        for mark in _MARKUP:
            if text.startswith(mark) and text.endswith(mark) and len(text) > 2 * len(mark):
                text = text[len(mark) : -len(mark)]
    return text


def _without_lead_in(text: str) -> str:
    for pattern in (_LEAD_IN, _LABEL, _ABOUT):
        if match := pattern.match(text):
            text = _without_delimiters(text[match.end() :])
    if match := _NEGATIVE.match(text):
        text = "-" + text[match.end() :]
    return text


def _whole_fraction(match: re.Match[str]) -> str:
    numerator, denominator = (part for part in match.groups() if part is not None)
    return rf"\frac{{{numerator}}}{{{denominator}}}"


def _plain_mathematics(text: str) -> str:
    text = _DEGREES.sub(lambda match: " celsius" if match[1] == "C" else " fahrenheit", text)
    text = (
        text.replace("**", "^")
        .replace("<=", r"\le ")
        .replace(">=", r"\ge ")
        .replace("!=", r"\neq ")
        .replace("...", r"\ldots ")
    )
    text = _CHOOSE.sub(lambda match: rf"\binom{{{match[1] or match[3]}}}{{{match[2] or match[4]}}}", text)
    text = _FUNCTION.sub(lambda match: f"\\{_FUNCTION_NAMES.get(match[1], match[1])} ", text)
    text = _ROOT_OF_BRACKET.sub(r"\\sqrt{\1}", text)
    return _POWER.sub(lambda match: f"^{{{match[1].strip('()')}}}", text)
