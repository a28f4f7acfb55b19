r"""Characters that mean the same become one: the first step of reading an answer.

fullwidth and other digits       ７２ ٧٢            → 72
minus signs before a number      −5 –5 —5 －5       → -5
fractions, powers                2½ 10³ x₁          → 2 1/2, 10^{3}, x_{1}
signs of mathematics             × ÷ · √2 ≤ ≈ π ∞   → \times … \sqrt{2} \le \approx \pi \infty
degrees                          90° 90º 25℃        → 90^\circ, 25^\circ C
brackets, commas, full stops     （1，2） 72。        → (1,2), 72.
spaces of every width, marks of direction and of joining: a space, or nothing
"""

import re
import unicodedata

_PLAIN = {
    **dict.fromkeys("\u2212\ufe63\uff0d\u2010\u2011\u2012", "-"),
    **dict.fromkeys("º˚°", r"^\circ "),
    "℃": r"^\circ C",
    "℉": r"^\circ F",
    "∞": r"\infty ",
    "π": r"\pi ",
    "θ": r"\theta ",
    "α": r"\alpha ",
    "β": r"\beta ",
    "γ": r"\gamma ",
    "λ": r"\lambda ",
    "μ": r"\mu ",
    "φ": r"\phi ",
    "ω": r"\omega ",
    "×": r"\times ",
    "⋅": r"\cdot ",
    "·": r"\cdot ",
    "∙": r"\cdot ",
    "÷": r"\div ",
    "±": r"\pm ",
    "≤": r"\le ",
    "⩽": r"\le ",
    "≥": r"\ge ",
    "⩾": r"\ge ",
    "≠": r"\neq ",
    "≈": r"\approx ",
    "≃": r"\approx ",
    "∪": r"\cup ",
    "∩": r"\cap ",
    "∈": r"\in ",
    "∅": r"\emptyset ",
    "ℝ": r"\mathbb{R}",
    "ℤ": r"\mathbb{Z}",
    "ℕ": r"\mathbb{N}",
    "ℚ": r"\mathbb{Q}",
    "ℂ": r"\mathbb{C}",
    "∠": r"\angle ",
    "△": r"\triangle ",
    "…": r"\ldots ",
    "⋯": r"\cdots ",
    "。": ".",
    "、": ",",
    **dict.fromkeys("“”„«»「」『』", '"'),
    **dict.fromkeys("‘’", "'"),
    "⁄": "/",
    "∕": "/",
}
_TABLE = str.maketrans(_PLAIN)
_SUPERSCRIPTS = dict(zip("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻ⁿ", "0123456789+-n", strict=True))
_SUBSCRIPTS = dict(zip("₀₁₂₃₄₅₆₇₈₉₊₋ₙ", "0123456789+-n", strict=True))
_RAISED = re.compile(f"[{''.join(_SUPERSCRIPTS)}]+")
_LOWERED = re.compile(f"[{''.join(_SUBSCRIPTS)}]+")
_RAISED_FRACTION = re.compile(f"([{''.join(_SUPERSCRIPTS)}]{{1,12}})[⁄∕/]([{''.join(_SUBSCRIPTS)}]{{1,12}})")
_VULGAR = re.compile("[¼½¾⅐-⅞]")
_DASH_SIGN = re.compile(r"(?<![\w)\]}])[–—](?=\s?[0-9.$£€\\(a-z])")
"""An en or em dash where a sign can stand; elsewhere it is punctuation."""
_ROOT = re.compile(r"√\s*(?:\(([^()]*)\)|\{([^{}]*)\}|([0-9]+(?:\.[0-9]+)?|[A-Za-z]))")


def plain_characters(text: str) -> str:
    """The text with one character for each meaning. Takes linear time; ASCII comes back as it is."""
    if text.isascii():
        return text
    text = _RAISED_FRACTION.sub(lambda match: f" {_flat(match[1])}/{_flat(match[2])} ", text)
    text = _RAISED.sub(lambda match: "^{" + "".join(_SUPERSCRIPTS[char] for char in match.group()) + "}", text)
    text = _LOWERED.sub(lambda match: "_{" + "".join(_SUBSCRIPTS[char] for char in match.group()) + "}", text)
    text = _VULGAR.sub(_vulgar_fraction, text)
    text = unicodedata.normalize("NFKC", text.translate(_TABLE))
    text = "".join(map(_plain, text))
    text = _ROOT.sub(lambda match: rf"\sqrt{{{match[1] or match[2] or match[3]}}}", text).replace("√", r"\sqrt ")
    return _DASH_SIGN.sub("-", text)


def _flat(text: str) -> str:
    return "".join(_SUPERSCRIPTS.get(char) or _SUBSCRIPTS[char] for char in text)


def _vulgar_fraction(match: re.Match[str]) -> str:
    return " " + unicodedata.normalize("NFKC", match.group()).replace("⁄", "/") + " "


def _plain(char: str) -> str:
    if char.isascii():
        return char
    category = unicodedata.category(char)
    if category == "Nd":
        return str(unicodedata.digit(char))
    if category == "Cf":  # zero width, direction, joining
        return ""
    return {"Zs": " ", "Zl": "\n", "Zp": "\n"}.get(category, char)
