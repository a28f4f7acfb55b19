r"""What an answer is made of: lists, sets, tuples, named values, and the atoms in them.

| written | read as | agrees with |
|---|---|---|
| `1, 2`; `1 and 2`; `x=1 or x=2`; `3 \pm \sqrt5` | a list | lists and sets with as many equal items in any order; a tuple or bracket in its order |
| `\{1, 2\}` | a set | lists and sets, in any order |
| `(1, 2)`, a column of a matrix | a tuple | tuples and lists in the same order |
| `[1, 2]` | a bracket | brackets and lists in the same order |
| `1, 2, \ldots, n` | a list with dots | lists with dots, item by item |
| `x=5`, `5=x`, `f(x)=5`, `x \in …`, `x = 2 \cdot 5 = 10` | a named value | the value alone, or under the same name |
| `x=3, y=2` | named values | the same under the same names; values in the order of the names |
| `5 = 7` | an equation of numbers that is false | nothing |
| everything else | an atom | what `equal_atoms` says |

`(7)`, `[7]`, `{7}` and `\{7\}` are 7.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from rewards.notation.quantity import equal_quantities, read_quantity
from rewards.notation.words import as_words

EqualAtoms = Callable[[str, str], bool]
"""(answer, reference) → whether they are equal."""

MAX_ITEMS = 200
"""Longer lists are compared in their order."""
_OPEN, _CLOSE = "([{", ")]}"
_TOKEN = re.compile(r"\\begin\s*\{[a-z*]+\}|\\end\s*\{[a-z*]+\}|\\[A-Za-z]+|\\.|\s+|.", re.DOTALL)
_SEPARATING_WORD = re.compile(r"(?<![A-Za-z])(?:and|or)(?![A-Za-z])|\\(?:lor|vee|land|wedge)(?![A-Za-z])")
_COLUMN = re.compile(r"\\begin\s*\{([pbBvV]?matrix|array)\}(?:\{[lcr|]*\})?(.*)\\end\s*\{\1\}", re.DOTALL)
_DOTS = re.compile(r"\\(?:l|c|d)?dots[a-z]?|\.\.\.")
_IN = re.compile(r"([A-Za-z](?:_\{?\w+\}?)?)\s*\\in(?![a-z])")
_RELATION = re.compile(
    r"\\(?:le|ge|leq|geq|neq|ne|in|cup|cap|mathbb|setminus|infty|lt|gt|mid)(?![a-z])|[<>|]|\\end|\\[lv]ert"
)


@dataclass(frozen=True, slots=True)
class Node:
    kind: str
    """`atom`, `list`, `tuple`, `set`, `bracket`, `equation` of numbers (its two sides), or `false`."""
    text: str
    items: tuple["Node", ...] = ()
    name: str = ""
    """Name of a named value."""

    @property
    def equation(self) -> str:
        return f"{self.name}={self.text}" if self.name else self.text


def equal(answer: str, reference: str, equal_atoms: EqualAtoms) -> bool:
    """Whether two normal forms are the same answer."""
    return _equal(read(answer), read(reference), equal_atoms)


def read(text: str) -> Node:
    """The structure of a normal form. Takes linear time for each level of brackets."""
    text = text.strip()
    if as_words(text) is not None or read_quantity(text) is not None:
        return Node("atom", text)
    parts = list(split_list(text))
    if len(parts) > 1:
        return _named_alike(Node("list", text, tuple(_items(parts))))
    if match := _IN.match(text):
        return _with_name(read(text[match.end() :]), match[1])
    sides = [part.strip() for part in _split(text, _is_equals)]
    if len(sides) > 1 and all(sides):
        return _read_equation(text, sides)
    if r"\pm" in text or r"\mp" in text:
        return Node("list", text, tuple(read(half) for half in _both_signs(text)))
    if (column := _COLUMN.fullmatch(text)) and "&" not in column[2] and column[1] != "vmatrix":
        rows = [row for row in re.split(r"\\\\", column[2]) if row.strip()]
        return Node("tuple", text, tuple(map(read, rows))) if len(rows) > 1 else Node("atom", text)
    return _read_brackets(text)


def split_list(text: str) -> Iterator[str]:
    """The parts between commas, semicolons, `and`, `or` outside all brackets."""
    text = _SEPARATING_WORD.sub(" , ", text)
    return (part for part in (part.strip() for part in _split(text, _is_separator)) if part)


def _split(text: str, is_separator: Callable[[str, str, str], bool]) -> Iterator[str]:
    """Parts between separators outside brackets; all of the text when brackets do not match."""
    tokens = _TOKEN.findall(text)
    depth, start, parts = 0, 0, []
    for place, token in enumerate(tokens):
        if token in _OPEN or token in (r"\{", r"\langle", r"\lfloor", r"\lceil") or token.startswith(r"\begin"):
            depth += 1
        elif token in _CLOSE or token in (r"\}", r"\rangle", r"\rfloor", r"\rceil") or token.startswith(r"\end"):
            depth -= 1
            if depth < 0:
                return iter([text])
        elif depth == 0 and is_separator(
            token, tokens[place - 1] if place else "", tokens[place + 1] if place + 1 < len(tokens) else ""
        ):
            parts.append("".join(tokens[start:place]))
            start = place + 1
    if depth:
        return iter([text])
    return iter([*parts, "".join(tokens[start:])])


def _is_separator(token: str, before: str, after: str) -> bool:
    return token in (",", ";")


def _is_equals(token: str, before: str, after: str) -> bool:
    return token == "=" and before not in ("<", ">", "!", ":", "=") and after != "="


def _items(parts: Sequence[str]) -> Iterator[Node]:
    """Parts of a list; `\\pm` makes two."""
    for part in parts:
        node = read(part)
        yield from node.items if node.kind == "list" and not node.name else (node,)


def _named_alike(node: Node) -> Node:
    """In `n = 1, 2, 3` the name is that of all."""
    first, *others = node.items
    if first.name and others and not any(other.name or other.kind == "false" for other in others):
        return Node("list", node.text, (_with_name(first, ""), *others), first.name)
    return node


def _with_name(node: Node, name: str) -> Node:
    return Node(node.kind, node.text, node.items, name)


def _read_equation(text: str, sides: list[str]) -> Node:
    quantities = [read_quantity(side) for side in sides]
    if all(quantities):
        last = quantities[-1]
        same = all(
            quantity is not None and last is not None and equal_quantities(quantity, last) for quantity in quantities
        )
        return Node("atom", sides[-1]) if same else Node("false", text)
    if is_name(sides[0]):
        return _with_name(read(sides[-1]), sides[0])
    if len(sides) == 2 and is_name(sides[1]):
        return _with_name(read(sides[0]), sides[1])
    if len(sides) == 2 and not re.search("[A-Za-z]", re.sub(r"\\[A-Za-z]+", "", sides[0])):
        return Node("equation", text, (Node("atom", sides[0]), read(sides[1])))
    return Node("atom", text)


def is_name(text: str) -> bool:
    r"""What can stand before `=` and only names the value behind it: `x`, `x_1`, `f(x)`, `\angle ABC`, `the area`."""
    if text == "i" or not re.search("[A-Za-z]", text):
        return False
    text = re.sub(r"_\s*(?:\{[^{}]*\}|\w)", "", re.sub(r"\([^()]*\)", "", text))
    return not re.search(r"[0-9+*/^<>-]|\\(?:frac|sqrt|cdot|times|pi|pm|sin|cos|tan|log|ln)(?![a-z])", text) and bool(
        text.strip()
    )


def _both_signs(text: str) -> Iterator[str]:
    for plus, minus in (("+", "-"), ("-", "+")):
        yield re.sub(r"\\mp(?![a-z])", minus, re.sub(r"\\pm(?![a-z])", plus, text)).strip().removeprefix("+")


def _read_brackets(text: str) -> Node:
    for left, right, kind in (("(", ")", "tuple"), ("[", "]", "bracket"), (r"\{", r"\}", "set"), ("{", "}", "")):
        if text.startswith(left) and text.endswith(right) and _encloses(text, left, right):
            inner = text[len(left) : -len(right)].strip()
            if "\\choose" in inner or not inner:
                return Node("atom", text)
            parts = list(split_list(inner))
            if kind == "set" and re.search(r"\\mid(?![a-z])|[|:]", inner):
                return Node("atom", text)
            if len(parts) < 2:
                node = read(inner)
                return node if kind != "set" or node.kind != "list" else Node("set", text, node.items)
            return Node(kind or "list", text, tuple(_items(parts)))
    return Node("atom", text)


def _encloses(text: str, left: str, right: str) -> bool:
    """Whether the first bracket is closed by the last."""
    tokens = _TOKEN.findall(text)
    depth = 0
    for place, token in enumerate(tokens):
        if token in _OPEN or token == r"\{":
            depth += 1
        elif token in _CLOSE or token == r"\}":
            depth -= 1
            if depth == 0 and place < len(tokens) - 1:
                return False
    return depth == 0


def _equal(answer: Node, reference: Node, equal_atoms: EqualAtoms) -> bool:
    if "false" in (answer.kind, reference.kind):
        return False
    if answer.kind == "equation":
        left, right = answer.items
        return equal_atoms(left.text, right.text) and _equal(right, reference, equal_atoms)
    if reference.kind == "equation":
        return _equal(answer, reference.items[1], equal_atoms)
    if _names_clash(answer, reference):
        return equal_atoms(answer.equation, reference.equation) if answer.kind == reference.kind == "atom" else False
    if answer.kind == reference.kind == "atom":
        if bool(answer.name) != bool(reference.name) and "=" in (reference if answer.name else answer).text:
            return equal_atoms(answer.equation, reference.equation)
        return equal_atoms(answer.text, reference.text)
    if not (answer.items and reference.items):
        if _RELATION.search(answer.text if answer.kind == "atom" else reference.text):
            return equal_atoms(answer.text, reference.text)
        return False
    return _equal_items(answer, reference, equal_atoms)


def value_of(text: str) -> str:
    """The part of a normal form that says the value: `x = 3 + 4 = 7` → `7`."""
    node = read(text)
    return value_of(node.items[1].text) if node.kind == "equation" else node.text


def is_dots(text: str) -> bool:
    """Whether an item stands for those that are left out."""
    return _DOTS.fullmatch(text) is not None


def _names_clash(answer: Node, reference: Node) -> bool:
    names = [re.sub(r"[\s{}\\]", "", node.name) for node in (answer, reference)]
    if not all(names) or names[0] == names[1]:
        return False
    return not any(re.search("[A-Za-z]{3}", name) for name in names)


def _equal_items(answer: Node, reference: Node, equal_atoms: EqualAtoms) -> bool:
    if len(answer.items) != len(reference.items):
        return False
    kinds = {answer.kind, reference.kind}
    if kinds not in (
        {"list"},
        {"set"},
        {"list", "set"},
        {"tuple"},
        {"bracket"},
        {"list", "tuple"},
        {"list", "bracket"},
    ):
        return False
    has_dots = [any(is_dots(item.text) for item in node.items) for node in (answer, reference)]
    if has_dots[0] != has_dots[1]:
        return False
    left, right = list(answer.items), list(reference.items)
    if all(item.name for item in left) and all(item.name for item in right):
        if len({item.name for item in left}) == len(left):
            left.sort(key=lambda item: item.name)
            right.sort(key=lambda item: item.name)
            if [item.name for item in left] != [item.name for item in right]:
                return False
            return _equal_in_order(left, right, equal_atoms)
    elif any(
        len({item.name for item in side}) == len(side) and all(item.name for item in side) for side in (left, right)
    ):
        # Values without names belong to the names in their order: `x=2, y=3` and `(2, 3)`, `x_1=1, x_2=2` and `1, 2`.
        for side in (left, right):
            if all(item.name for item in side):
                side.sort(key=lambda item: item.name)
        return _equal_in_order(left, right, equal_atoms)
    if has_dots[0] or not kinds <= {"list", "set"} or len(left) > MAX_ITEMS:
        return _equal_in_order(left, right, equal_atoms)
    for item in left:
        place = next((place for place, other in enumerate(right) if _equal(item, other, equal_atoms)), None)
        if place is None:
            return False
        del right[place]
    return True


def _equal_in_order(left: Sequence[Node], right: Sequence[Node], equal_atoms: EqualAtoms) -> bool:
    return all(
        (is_dots(one.text) and is_dots(other.text)) or _equal(one, other, equal_atoms)
        for one, other in zip(left, right, strict=True)
    )
