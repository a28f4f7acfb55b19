r"""Numbers with what stands around them: a sign, a currency, a scale, a unit, a base.

| read as a number | value |
|---|---|
| `-1,234.50`, `.5`, `007` | as written, every digit |
| `1e3`, `1.5e-3`, `1.5 \times 10^{3}`, `1.5 x 10^3`, `1.5*10^3` | 1000, 0.0015, 1500 |
| `3/4`, `\frac{3}{4}`, `-\frac{3}{4}` | 3/4 |
| `2 1/2`, `3\frac{1}{2}`, `2 and 1/2` | 5/2, 7/2 |
| `five`, `seventy-two`, `two hundred and five` | 5, 72, 205 |
| `5 million`, `5 hundred` | 5000000, 500 |

Behind it may stand a unit (`7 apples`, `5 cm^2`, `60 km/h`, `90^\circ`, `72个`), before it or behind it a currency. Units of two
answers may not contradict each other; one without a unit agrees with all. `50\%` agrees with 50 and with 0.5.
`101_2` has a base, which has to agree too, except that a reference `101_2` accepts `101`.
"""

import re
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from fractions import Fraction
from functools import lru_cache

from rewards.notation.units import CONNECTORS, FUNCTIONS, SCALES, agree, is_unit, unit_of, words_to_number

MAX_RATIO_CHARS = 400
"""Digits of a number that is compared as a ratio."""
MAX_EXPONENT = 400
PLACES = 6
"""Decimals that stand for a rounding agree up to here, as math-verify has it."""
AGREEING = Fraction(1, 100_000)
"""Share by which they may differ besides, so that tiny numbers are told apart."""
DOUBLE_DIGITS = 22
"""A reference of at least so many digits that is exactly a double may have been one: its lower digits mean nothing."""

_DECIMAL = r"(?:\d+(?:\.\d*)?|\.\d+)"
_PERCENT = frozenset({"percent"})
PLAIN = re.compile(rf"[+-]?{_DECIMAL}")
_CURRENCY = r"(?:\\?[$£€¥₹]|Rs\.?|US\$)"
_HEAD = re.compile(
    rf"(?P<sign>[+-]?)\s*(?P<currency>{_CURRENCY})?\s*(?P<sign2>[+-]?)\s*(?:"
    rf"(?P<whole>\d+)\s*(?:(?:\s|\band\b)\s*(?P<n1>\d+)\s?/\s?(?P<d1>\d+)|\\frac\s?\{{(?P<n2>\d+)\}}\s?\{{(?P<d2>\d+)\}})"
    rf"|(?P<n3>\d+)\s?/\s?(?P<d3>\d+)"
    rf"|\\frac\s?\{{(?P<n4>\s?-?{_DECIMAL})\s?\}}\s?\{{(?P<d4>\s?-?{_DECIMAL})\s?\}}"
    rf"|(?P<mantissa>{_DECIMAL})\s?(?:[eE](?P<exponent>[+-]?\d+)|(?:\\times|\\cdot|\*|x)\s?10\s?\^\s?\{{?\s?(?P<power>[+-]?\d+)\s?\}}?)"
    rf"|(?P<plain>{_DECIMAL}))"
)
_SCALE = re.compile(rf"\s*\\?\s*({'|'.join(SCALES)})s?(?![A-Za-z])", re.IGNORECASE)
_UNIT_WORD = r"(?:[A-Za-z]+\.?|\\?[$£€¥₹¢%]|\^\\circ|\^\{\\circ\}|[^\x00-\x7f]+)(?:\^\{?[23]\}?)?"
_UNIT = re.compile(rf"\s*{_UNIT_WORD}(?:(?:\s*[-/]\s*|\s+){_UNIT_WORD}|\s*\^\{{?[23]\}}?)*\s*\.?\s*")
_GLOSS = re.compile(r"\s*\(([^()]*)\)\s*$")
_BASE = re.compile(r"([0-9A-Fa-f]+)\s?_\s?\{?\s?(\d+|two|three|eight|ten|sixteen)\s?\}?")
_BASE_WORDS = {"two": 2, "three": 3, "eight": 8, "ten": 10, "sixteen": 16}
_CLOCK = re.compile(r"(\d{1,2})\s?:\s?(\d{2})(?:\s?:\s?(\d{2}))?(?:\s*([ap])\.?m\.?)?", re.IGNORECASE)
_COLON_RATIO = re.compile(rf"({_DECIMAL})(?:\s?:\s?({_DECIMAL}))+")


@dataclass(frozen=True, slots=True)
class Quantity:
    """A number, exactly as it was written, and its unit."""

    value: Decimal | Fraction
    unit: frozenset[str]
    is_rounded: bool
    """Written as a decimal, which may stand for a rounding."""


@lru_cache(maxsize=4096)
def read_quantity(text: str) -> Quantity | None:
    """The quantity that a normal form is, from its first to its last character; None when it is something else."""
    if PLAIN.fullmatch(text):
        return Quantity(value=Decimal(text), unit=frozenset(), is_rounded="." in text)
    head = _HEAD.match(text)
    if head is None:
        spoken = words_to_number(text)
        if spoken is None:
            return None
        value, end = spoken
        unit = _read_unit(text[end:])
        return None if unit is None else Quantity(value=value, unit=unit, is_rounded=False)
    read = _read_head(head)
    if read is None:
        return None
    exact, rest = read, text[head.end() :]
    if scale := _SCALE.match(rest):
        exact, rest = exact * SCALES[scale[1].lower()], rest[scale.end() :]
    unit = _read_unit(rest)
    if unit is None:
        return None
    if head["currency"]:
        unit = unit_of(head["currency"].lstrip("\\")) | (unit - {"dollar", "euro", "sterling"})
    decimal = head["plain"] or head["mantissa"]
    return Quantity(
        value=exact, unit=unit, is_rounded=bool(decimal and ("." in decimal or "-" in (head["exponent"] or "")))
    )


def split_unit(text: str) -> tuple[str, frozenset[str]]:
    r"""An expression and the unit behind it: `3\sqrt{2} centimeters` → `3\sqrt{2}`, {centimeter}."""
    gloss = _GLOSS.search(text)
    if (
        gloss
        and re.search(r"\d", text[: gloss.start()])
        and re.search("[A-Za-z]{3}", gloss[1].replace("\\", ""))
        and not re.search(r"\\[a-z]+\s*$", text[: gloss.start()])
    ):
        text = text[: gloss.start()]
    for match in re.finditer(r"(?<=[\d})\]]) ?(?=[A-Za-z%$^\\¢€£])|(?<=[a-zA-Z]) (?=[A-Za-z]{2})", text):
        unit = _read_unit(text[match.end() :])
        if unit:
            return text[: match.start()].strip(), unit
    return text, frozenset()


def equal_quantities(answer: Quantity, reference: Quantity) -> bool:
    """Whether two quantities are the same; see the table above."""
    one_is_percent, other_is_percent = (bool(_PERCENT & quantity.unit) for quantity in (answer, reference))
    if one_is_percent and other_is_percent:
        return agree(answer.unit, reference.unit) and _equal(answer, reference, 1)
    if not (one_is_percent or other_is_percent):
        return agree(answer.unit, reference.unit) and _equal(answer, reference, 1)
    if (answer.unit if other_is_percent else reference.unit) - _PERCENT:
        return False
    factor = Fraction(1, 100)
    if _equal(answer, reference, 1):
        return True
    left, right = (answer, reference) if one_is_percent else (reference, answer)
    return _equal(left, right, factor)


def _equal(one: Quantity, other: Quantity, factor: int | Fraction) -> bool:
    if isinstance(one.value, Decimal) and isinstance(other.value, Decimal) and factor == 1:
        if one.value == other.value:
            return True
        if not (one.is_rounded or other.is_rounded):
            return _were_a_double(one.value, other.value)
    left, right = _as_fraction(one.value), _as_fraction(other.value)
    if left is None or right is None:
        return False
    left *= factor
    if left == right:
        return True
    if not (one.is_rounded or other.is_rounded):
        return False
    if left.denominator == 1 or right.denominator == 1:
        return False
    return round(left, PLACES) == round(right, PLACES) and abs(left - right) <= AGREEING * max(abs(left), abs(right))


def _were_a_double(answer: Decimal, reference: Decimal) -> bool:
    """Whether the reference went through a double, which the answer's digits round to."""
    if reference.adjusted() + 1 < DOUBLE_DIGITS or max(reference.adjusted(), answer.adjusted()) > 300:
        return False
    return int(float(reference)) == reference == int(float(answer))


def equal_with_base(answer: str, reference: str) -> bool | None:
    r"""Numbers with a base written below them; None when neither has one. `101_2` and `101` are equal as long as it is the
    reference that names the base; `52_{10}` is 52."""
    one, other = _BASE.fullmatch(answer), _BASE.fullmatch(reference)
    if one is None and other is None:
        return None
    if one is not None and other is not None:
        return _base_of(one) == _base_of(other) and _digits(one[1]) == _digits(other[1])
    if one is None and other is not None:
        return re.fullmatch("[0-9A-Fa-f]+", answer) is not None and _digits(answer) == _digits(other[1])
    return one is not None and _base_of(one) == 10 and _digits(one[1]) == _digits(reference)


def _base_of(match: re.Match[str]) -> int:
    return _BASE_WORDS.get(match[2]) or int(match[2][:4])


def _digits(text: str) -> str:
    return text.lower().lstrip("0") or "0"


def equal_clocks(answer: str, reference: str) -> bool | None:
    """Times of day and ratios with a colon; None when neither is one. Times agree to the minute, ratios when they are
    the same: `2:3` and `4:6`. A time is no number."""
    one, other = _CLOCK.fullmatch(answer), _CLOCK.fullmatch(reference)
    if one and other:
        halves = [match[4].lower() for match in (one, other) if match[4]]
        return [int(part or 0) for part in one.groups()[:3]] == [int(part or 0) for part in other.groups()[:3]] and (
            len(set(halves)) < 2
        )
    ratios = [_COLON_RATIO.fullmatch(text) for text in (answer, reference)]
    if all(ratios):
        left, right = (
            [_as_fraction(Decimal(part)) or Fraction(0) for part in text.split(":")] for text in (answer, reference)
        )
        if len(left) != len(right) or not (any(left) and any(right)):
            return False
        # a : b : c are multiples of each other when all products across are equal.
        return all(a * right[0] == b * left[0] for a, b in zip(left, right, strict=True)) and bool(left[0]) == bool(
            right[0]
        )
    if one or other:
        return False
    return None


def _read_head(head: re.Match[str]) -> Decimal | Fraction | None:
    negative = (head["sign"] == "-") != (head["sign2"] == "-")
    if head["plain"] is not None:
        value = Decimal(head["plain"])
        return -value if negative else value
    if head["mantissa"] is not None:
        power = head["exponent"] if head["exponent"] is not None else head["power"]
        if len(power) > 4 or abs(int(power)) > MAX_EXPONENT or len(head["mantissa"]) > MAX_RATIO_CHARS:
            return None
        try:
            value = Decimal(f"{head['mantissa']}e{power}")
        except InvalidOperation:
            return None
        return -value if negative else value
    if head.end() - head.start() > MAX_RATIO_CHARS:
        return None
    whole = Fraction(head["whole"] or 0)
    numerator = next(head[name] for name in ("n1", "n2", "n3", "n4") if head[name] is not None)
    denominator = next(head[name] for name in ("d1", "d2", "d3", "d4") if head[name] is not None)
    if not Fraction(denominator.strip()):
        return None
    ratio = whole + Fraction(numerator.strip()) / Fraction(denominator.strip())
    return -ratio if negative else ratio


def _read_unit(rest: str) -> frozenset[str] | None:
    """What stands behind a number, as a unit; None when it is no unit and the whole is something else."""
    rest = _GLOSS.sub("", rest) if re.search("[A-Za-z]{3}", rest) or rest.startswith(" (") else rest
    if not rest.strip(" ."):
        return frozenset()
    if rest.strip() in (r"^\circ", r"^{\circ}", r"\%", "%"):
        return unit_of(rest)
    if _UNIT.fullmatch(rest) is None:
        return None
    words = re.findall(r"[A-Za-z]+", rest.replace(r"\circ", ""))
    if rest[:1] not in " " and words and not is_unit(words[0]) and not (len(words[0]) >= 4 and words[0].isalpha()):
        return None  # `7x`: a variable
    for word in words:
        if (word.lower() in FUNCTIONS and not is_unit(word)) or (
            word.lower() in CONNECTORS and word.lower() not in ("in", "of", "per", "squared", "cubed")
        ):
            return None
        if len(word) < 3 and not is_unit(word) and word.lower() not in ("of", "in", "sq", "cu", "pm", "am", "c", "f"):
            return None
    if words and words[0].lower() in ("in", "of") and len(words) > 1:
        return None
    return unit_of(rest)


def _as_fraction(value: Decimal | Fraction) -> Fraction | None:
    if isinstance(value, Fraction):
        return value
    return (
        Fraction(value)
        if len(value.as_tuple().digits) <= MAX_RATIO_CHARS and abs(value.adjusted()) <= 2 * MAX_EXPONENT
        else None
    )
