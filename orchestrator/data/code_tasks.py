"""Forty small programming tasks of our own: the embedded source `code`, for tests and examples without a download.

Each has a question, a solution, and tests that programs are run against (`actors.code_verifier`): assertions, or standard input and
output. Every fourth task is held out.
"""

from collections.abc import Iterator
from typing import Any

HELD_OUT_EVERY = 4

# Signature; what it returns; a solution's body; assertions.
FUNCTIONS = (
    ("double(n)", "twice the number n", "return 2 * n", ("double(3) == 6", "double(-2) == -4", "double(0) == 0")),
    (
        "is_even(n)",
        "True when the integer n is even, else False",
        "return n % 2 == 0",
        ("is_even(4) is True", "is_even(7) is False", "is_even(0) is True"),
    ),
    (
        "largest(numbers)",
        "the largest of a list of numbers, and None for an empty list",
        "return max(numbers, default=None)",
        ("largest([3, 9, 2]) == 9", "largest([-5, -7]) == -5", "largest([]) is None"),
    ),
    (
        "backwards(text)",
        "the text in reverse",
        "return text[::-1]",
        ("backwards('abc') == 'cba'", "backwards('') == ''", "backwards('ab ') == ' ba'"),
    ),
    (
        "count_vowels(text)",
        "how many of a, e, i, o, u the text has, in either case",
        "return sum(c in 'aeiou' for c in text.lower())",
        ("count_vowels('Hello') == 2", "count_vowels('xyz') == 0", "count_vowels('AEIOU') == 5"),
    ),
    (
        "factorial(n)",
        "the product of 1 to n, and 1 for n = 0",
        "return 1 if n == 0 else n * factorial(n - 1)",
        ("factorial(0) == 1", "factorial(5) == 120", "factorial(10) == 3628800"),
    ),
    (
        "fibonacci(n)",
        "the n-th Fibonacci number, where fibonacci(0) is 0 and fibonacci(1) is 1",
        "a, b = 0, 1\n    for _ in range(n):\n        a, b = b, a + b\n    return a",
        ("fibonacci(0) == 0", "fibonacci(1) == 1", "fibonacci(10) == 55"),
    ),
    (
        "is_palindrome(text)",
        "True when the text reads the same backwards, else False",
        "return text == text[::-1]",
        ("is_palindrome('level') is True", "is_palindrome('ab') is False", "is_palindrome('') is True"),
    ),
    (
        "without_duplicates(items)",
        "the items of a list, each once, in the order in which they come first",
        "return list(dict.fromkeys(items))",
        (
            "without_duplicates([1, 2, 1, 3]) == [1, 2, 3]",
            "without_duplicates([]) == []",
            "without_duplicates(['b', 'a', 'b']) == ['b', 'a']",
        ),
    ),
    (
        "gcd(a, b)",
        "the greatest common divisor of two positive integers",
        "while b:\n        a, b = b, a % b\n    return a",
        ("gcd(12, 18) == 6", "gcd(7, 3) == 1", "gcd(10, 10) == 10"),
    ),
    (
        "is_prime(n)",
        "True when the integer n is prime, else False",
        "return n > 1 and all(n % d for d in range(2, int(n ** 0.5) + 1))",
        ("is_prime(2) is True", "is_prime(9) is False", "is_prime(1) is False", "is_prime(97) is True"),
    ),
    (
        "count_words(text)",
        "how many words the text has, parted by white space",
        "return len(text.split())",
        ("count_words('a b  c') == 3", "count_words('') == 0", "count_words(' one ') == 1"),
    ),
    (
        "sum_of_digits(n)",
        "the sum of the decimal digits of the integer n, whatever its sign",
        "return sum(int(d) for d in str(abs(n)))",
        ("sum_of_digits(123) == 6", "sum_of_digits(0) == 0", "sum_of_digits(-45) == 9"),
    ),
    (
        "flatten(rows)",
        "one list with the items of all lists in rows, in their order",
        "return [x for row in rows for x in row]",
        ("flatten([[1, 2], [3]]) == [1, 2, 3]", "flatten([]) == []", "flatten([[], [4]]) == [4]"),
    ),
    (
        "clamp(x, low, high)",
        "x, but at least low and at most high",
        "return max(low, min(high, x))",
        ("clamp(5, 0, 3) == 3", "clamp(-1, 0, 3) == 0", "clamp(2, 0, 3) == 2"),
    ),
    (
        "most_common(items)",
        "the item that occurs most often in a list; of several the one that comes first",
        "return max(items, key=items.count)",
        ("most_common([1, 2, 2, 3]) == 2", "most_common(['b', 'a', 'a', 'b']) == 'b'", "most_common([7]) == 7"),
    ),
    (
        "to_binary(n)",
        "the integer n, at least 0, in binary digits without a prefix",
        "return format(n, 'b')",
        ("to_binary(5) == '101'", "to_binary(0) == '0'", "to_binary(8) == '1000'"),
    ),
    (
        "from_roman(text)",
        "the number that a Roman numeral of I, V, X, L and C stands for",
        "v = [{'I': 1, 'V': 5, 'X': 10, 'L': 50, 'C': 100}[c] for c in text]\n    return sum(-a if a < b else a for a, b in zip(v, v[1:] + [0]))",
        ("from_roman('XIV') == 14", "from_roman('III') == 3", "from_roman('XCIX') == 99"),
    ),
    (
        "is_anagram(one, other)",
        "True when two words have the same letters equally often, else False",
        "return sorted(one) == sorted(other)",
        ("is_anagram('listen', 'silent') is True", "is_anagram('aab', 'abb') is False", "is_anagram('', '') is True"),
    ),
    (
        "running_sums(numbers)",
        "the list of sums of the first 1, 2, 3, … numbers",
        "out, total = [], 0\n    for x in numbers:\n        total += x\n        out.append(total)\n    return out",
        ("running_sums([1, 2, 3]) == [1, 3, 6]", "running_sums([]) == []", "running_sums([5, -5]) == [5, 0]"),
    ),
    (
        "second_largest(numbers)",
        "the second largest of the different numbers in a list, and None when there is none",
        "found = sorted(set(numbers))\n    return found[-2] if len(found) > 1 else None",
        ("second_largest([3, 1, 2]) == 2", "second_largest([4, 4]) is None", "second_largest([9, 9, 8]) == 8"),
    ),
    (
        "title_case(text)",
        "the text with the first letter of each word, parted by single spaces, as a capital",
        "return ' '.join(w[:1].upper() + w[1:] for w in text.split(' '))",
        ("title_case('ab cd') == 'Ab Cd'", "title_case('') == ''", "title_case('a') == 'A'"),
    ),
    (
        "chunks(items, size)",
        "the items of a list as lists of size items, the last one perhaps shorter",
        "return [items[i:i + size] for i in range(0, len(items), size)]",
        ("chunks([1, 2, 3], 2) == [[1, 2], [3]]", "chunks([], 3) == []", "chunks([1, 2], 5) == [[1, 2]]"),
    ),
    (
        "transpose(rows)",
        "the rows of a rectangular list of lists as columns",
        "return [list(c) for c in zip(*rows)]",
        (
            "transpose([[1, 2], [3, 4]]) == [[1, 3], [2, 4]]",
            "transpose([[1, 2, 3]]) == [[1], [2], [3]]",
            "transpose([]) == []",
        ),
    ),
    (
        "caesar(text, shift)",
        "the text with each small letter moved on by shift places in the alphabet, z followed by a; other characters stay",
        "return ''.join(chr((ord(c) - 97 + shift) % 26 + 97) if 'a' <= c <= 'z' else c for c in text)",
        ("caesar('abc', 1) == 'bcd'", "caesar('xyz', 3) == 'abc'", "caesar('a b!', 0) == 'a b!'"),
    ),
    (
        "is_balanced(text)",
        "True when the round brackets of the text open and close in pairs, else False",
        "depth = 0\n    for c in text:\n        depth += (c == '(') - (c == ')')\n        if depth < 0:\n            return False\n    return depth == 0",
        (
            "is_balanced('(a(b))') is True",
            "is_balanced(')(') is False",
            "is_balanced('((') is False",
            "is_balanced('') is True",
        ),
    ),
    (
        "common(one, other)",
        "the sorted list of what is in both lists, each once",
        "return sorted(set(one) & set(other))",
        ("common([1, 2, 3], [3, 2, 5]) == [2, 3]", "common([], [1]) == []", "common([1, 1], [1]) == [1]"),
    ),
    (
        "collatz_steps(n)",
        "how many steps of n / 2 for even n and 3 n + 1 for odd n it takes from n to 1",
        "steps = 0\n    while n != 1:\n        n, steps = (n // 2 if n % 2 == 0 else 3 * n + 1), steps + 1\n    return steps",
        ("collatz_steps(1) == 0", "collatz_steps(6) == 8", "collatz_steps(7) == 16"),
    ),
    (
        "median(numbers)",
        "the middle one of an odd number of numbers when they are sorted, and the mean of the middle two of an even number",
        "v = sorted(numbers)\n    m = len(v) // 2\n    return v[m] if len(v) % 2 else (v[m - 1] + v[m]) / 2",
        ("median([3, 1, 2]) == 2", "median([4, 1, 2, 3]) == 2.5", "median([7]) == 7"),
    ),
    (
        "run_lengths(text)",
        "the list of pairs of a character and how often it stands in a row",
        "out = []\n    for c in text:\n        if out and out[-1][0] == c:\n            out[-1] = (c, out[-1][1] + 1)\n        else:\n            out.append((c, 1))\n    return out",
        (
            "run_lengths('aab') == [('a', 2), ('b', 1)]",
            "run_lengths('') == []",
            "run_lengths('aba') == [('a', 1), ('b', 1), ('a', 1)]",
        ),
    ),
)
# What the program does with standard input; a solution; pairs of input and output.
PROGRAMS = (
    ("reads two integers in one line and prints their sum", "a, b = map(int, input().split())\nprint(a + b)", (("3 4", "7"), ("-1 1", "0"), ("100 250", "350"))),
    ("reads a line of integers and prints the smallest and the largest, parted by a space", "v = list(map(int, input().split()))\nprint(min(v), max(v))", (("3 1 2", "1 3"), ("5", "5 5"), ("-2 -9 4", "-9 4"))),
    ("reads an integer n and prints the numbers from 1 to n, one in a line", "for i in range(1, int(input()) + 1):\n    print(i)", (("3", "1\n2\n3"), ("1", "1"))),
    ("reads a word and prints it in capitals", "print(input().strip().upper())", (("abc", "ABC"), ("Hello", "HELLO"))),
    ("reads an integer n, then n lines with an integer each, and prints their sum", "n = int(input())\nprint(sum(int(input()) for _ in range(n)))", (("2\n5\n6", "11"), ("1\n-3", "-3"), ("0", "0"))),
    ("reads an integer and prints Fizz when 3 divides it, Buzz when 5 does, FizzBuzz when both do, and the number itself otherwise", "n = int(input())\nprint('Fizz' * (n % 3 == 0) + 'Buzz' * (n % 5 == 0) or n)", (("9", "Fizz"), ("10", "Buzz"), ("30", "FizzBuzz"), ("7", "7"))),
    ("reads a line of words and prints them in alphabetical order, parted by spaces", "print(*sorted(input().split()))", (("pear apple fig", "apple fig pear"), ("b a", "a b"))),
    ("reads a temperature in degrees Celsius and prints it in Fahrenheit with one decimal", "print(f'{float(input()) * 9 / 5 + 32:.1f}')", (("0", "32.0"), ("100", "212.0"), ("36.6", "97.9"))),
    ("reads two lines of integers of the same number and prints the sum of the products of those in the same place", "a = map(int, input().split())\nb = map(int, input().split())\nprint(sum(x * y for x, y in zip(a, b)))", (("1 2 3\n4 5 6", "32"), ("7\n-1", "-7"))),
    ("reads a line and prints how many different characters it has, spaces left out", "print(len(set(input().replace(' ', ''))))", (("hello", "4"), ("a b a", "2"), ("zzz", "1"))),
)  # fmt: skip


def rows(*, held_out: bool = False) -> Iterator[dict[str, Any]]:
    """Rows with `question`, `solution` and `tests`: 30 to train on, or the 10 that are held out."""
    for number, row in enumerate(all_rows()):
        if (number % HELD_OUT_EVERY == HELD_OUT_EVERY - 1) == held_out:
            yield row


def all_rows() -> Iterator[dict[str, Any]]:
    """All forty, in order."""
    for signature, returns, body, assertions in FUNCTIONS:
        yield {
            "question": f"Write a Python function {signature} that returns {returns}.",
            "solution": f"def {signature}:\n    {body}\n",
            "tests": [f"assert {assertion}" for assertion in assertions],
        }
    for does, solution, pairs in PROGRAMS:
        yield {
            "question": f"Write a Python program that {does}.",
            "solution": f"{solution}\n",
            "tests": [{"input": given, "output": wanted} for given, wanted in pairs],
        }
