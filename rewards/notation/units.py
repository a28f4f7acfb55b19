"""Numbers as people write them in words, and the units behind them."""

import re
from fractions import Fraction

_SMALL = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen"
).split()
_TENS = "twenty thirty forty fifty sixty seventy eighty ninety".split()
SCALES = {
    "hundred": 10**2,
    "thousand": 10**3,
    "million": 10**6,
    "billion": 10**9,
    "trillion": 10**12,
    "dozen": 12,
}
_NUMBER_WORDS = (
    {word: value for value, word in enumerate(_SMALL)}
    | {word: 10 * place for place, word in enumerate(_TENS, start=2)}
    | SCALES
)
_WORD = re.compile(r"[A-Za-z]+")
_IN_WORDS = re.compile(
    rf"(?:{'|'.join(_NUMBER_WORDS)})(?:(?:[\s-]{{1,3}}|\s+and\s+)(?:{'|'.join(_NUMBER_WORDS)}))*(?![A-Za-z])",
    re.IGNORECASE,
)

_SYNONYMS = """
meter: m meters metre metres
kilometer: km kms kilometers kilometre kilometres
centimeter: cm cms centimeters centimetre centimetres
millimeter: mm millimeters millimetre millimetres
mile: mi miles
foot: ft feet
inch: in inches
yard: yd yds yards
gram: g grams gramme grammes
kilogram: kg kgs kilograms kilo kilos
milligram: mg milligrams
pound: lb lbs pounds
ounce: oz ounces
liter: l L liters litre litres
milliliter: ml mL milliliters millilitre millilitres
second: s sec secs seconds
minute: min mins minutes
hour: h hr hrs hours
day: days
week: weeks
month: months
year: yr yrs years
dollar: $ dollars usd
euro: € euros eur
sterling: £ gbp
cent: ¢ cents
yen: ¥ jpy yuan rmb
rupee: ₹ rupees
percent: % percentage
degree: degrees deg
celsius: °c
fahrenheit: °f
radian: rad radians
unit: units
hertz: hz
newton: n
joule: j
watt: w
volt: v
"""
_UNITS = {
    name: line.partition(":")[0]
    for line in _SYNONYMS.strip().splitlines()
    for name in (line.partition(":")[0], *line.partition(":")[2].split())
}
_COMPOUND = {
    "mph": "mile per hour",
    "kph": "kilometer per hour",
    "kmh": "kilometer per hour",
    "sq": "square",
    "cu": "cubic",
}
CONNECTORS = frozenset(
    "and or to from of in on at if when where for but not is are was were plus minus times mod modulo over by than the a an "
    "with without into choose factorial squared cubed which that this so since because then as between".split()
)
"""Words that end a unit, or say that what stands there is no number with a unit."""
FUNCTIONS = frozenset(
    "sin cos tan cot sec csc log ln exp sqrt lim max min gcd lcm det arcsin arccos arctan sinh cosh tanh deg arg "
    "pi inf infinity infty abs floor ceil binom frac tfrac dfrac".split()
)
"""Runs of letters that are mathematics and no words."""


def is_unit(word: str) -> bool:
    """One that the table has, by its name or a short form."""
    return word in _UNITS or word.lower() in _UNITS or word.lower() in _COMPOUND


def short_unit_name(text: str) -> str:
    r"""The full name of a unit that is written with one or two letters, as in `\text{m}`; else the text."""
    return _UNITS.get(text, text) if len(text) <= 2 and text.isalpha() else text


def unit_of(text: str) -> frozenset[str]:
    r"""What the words behind a number measure, one name for each unit: `cm^2`, `square centimeters` → centimeter, ^2.

    Empty when nothing is said.
    """
    text = text.replace("/", " per ").replace("{", "").replace("}", "")
    text = re.sub(r"\^\s*([23])", r" ^\1 ", text).replace(r"^\circ", " degree ").replace("\\", " ")
    found = set()
    for word in text.split():
        for part in _COMPOUND.get(word.lower().rstrip("."), word.strip(".,;:!?()")).split():
            if part in ("square", "squared", "^2"):
                found.add("^2")
            elif part in ("cubic", "cubed", "^3"):
                found.add("^3")
            elif part and part.lower() not in CONNECTORS - {"per"}:
                found.add(_UNITS.get(part) or _UNITS.get(part.lower()) or _singular(part.lower()))
    return frozenset(found)


def agree(one: frozenset[str], other: frozenset[str]) -> bool:
    """Whether two units may be the same: one says no more than the other. `5 apples` and `5 red apples` agree."""
    return one <= other or other <= one


def words_to_number(text: str) -> tuple[Fraction, int] | None:
    """The number in words at the beginning of a text and where it ends; None when there is none.

    Examples: `seventy-two clips` → 72, 11; `two hundred and five` → 205, 20.
    """
    match = _IN_WORDS.match(text)
    if match is None or len(match.group()) > 200:
        return None
    total, current = 0, 0
    words = [word.lower() for word in _WORD.findall(match.group()) if word.lower() != "and"]
    for word in words:
        value = _NUMBER_WORDS[word]
        if word in ("hundred", "dozen"):
            current = max(current, 1) * value
        elif word in SCALES:
            total, current = total + max(current, 1) * value, 0
        else:
            current += value
    return Fraction(total + current), match.end()


def last_number_in_words(text: str) -> str | None:
    """As it stands; a lone `one` is none, it mostly means a thing: `the first one`."""
    found = [match.group() for match in re.finditer(rf"(?<![A-Za-z-]){_IN_WORDS.pattern}", text, re.IGNORECASE)]
    return next((number for number in reversed(found) if number.lower() not in ("one", *SCALES)), None)


def _singular(word: str) -> str:
    if word.endswith("ies") and len(word) > 4:
        return word[:-3] + "y"
    if word.endswith(("ses", "xes", "ches", "shes")):
        return word[:-2]
    return word[:-1] if word.endswith("s") and not word.endswith("ss") and len(word) > 3 else word
