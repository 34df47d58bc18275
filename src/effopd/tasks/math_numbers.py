"""How numbers in answers are read and compared, where math-verify does it too loosely.

math-verify adds numbers that stand side by side (`1 2` is 3), reads `1e-9` as $e - 9$, and calls numbers equal if their
first six decimals are, so that $10^{-20}$ is $10^{-21}$.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable
from decimal import Decimal
from typing import Any

FEWEST_DIGITS = 6  # significant digits from which a decimal may stand for a number that it is rounded from
MOST_DIGITS = 15  # significant digits that are compared; a float holds as many
EXACT_DIGITS = 40  # to which numbers that are not decimals are computed

SPACES = re.compile(r"(?<!\\)\\[ ,;:]|~|\\quad\b")  # not the end of a matrix's row, as in `1 \\ 2`
IN_TEXT = re.compile(r"\s*\\(?:text|textbf|textrm|mathrm|mathbf)\s*\{\s*([-+]?\.?\d[^{}]*)\}\s*")
VULGAR = re.compile("[¼-¾⅐-⅞]")  # ½ and the like
SHORT_FRACTION = re.compile(r"(\\[dtc]?(?:frac|binom))\s*(\d)\s*(\d)")
MIXED = re.compile(r"(?<![\w.^/)}\]])(\d+)\s+(\d+)\s*/\s*(\d+)(?![\w.])")
THOUSANDS = re.compile(r"(?<![\w.,^])[1-9]\d{0,2}(?:[\s_]\d{3})+(?!\d|\s+\d)")
SIDE_BY_SIDE = re.compile(r"(?<!\\log_)\d\s+\.?\d")
SIGN = re.compile(r"(^|[(\[{,;=])(\s*)[–‐‑﹣－](?=\s*[\d.\\√π(])")  # a dash between numbers is a range
ROOT = re.compile(r"√\s*(?:(\d+(?:\.\d+)?|[A-Za-z])|\(([^()]*)\)|\{([^{}]*)\})")
REPEATING = re.compile(
    r"(?<![\w.])(\d{1,30})\.(\d{0,30})(?:\\(?:overline|bar)\s*(?:\{(\d{1,30})\}|(\d))|\((\d{1,30})\))(?!\d)"
)
# Relations, which make a number another answer.
RELATIONS = {
    "<": "<", r"\lt": "<", ">": ">", r"\gt": ">",
    **dict.fromkeys(("≤", "<=", r"\le", r"\leq", r"\leqslant"), "≤"),
    **dict.fromkeys(("≥", ">=", r"\ge", r"\geq", r"\geqslant"), "≥"),
    **dict.fromkeys(("≠", "!=", r"\ne", r"\neq", r"\not="), "≠"),
}  # fmt: skip
RELATION = "|".join(re.escape(sign) + r"(?![A-Za-z])" * sign[-1].isalpha() for sign in sorted(RELATIONS, reverse=True))
BARE_RELATION = re.compile(rf"[\s$]*(?:({RELATION})(.*?)|(.*?)({RELATION}))[\s$]*", re.DOTALL)
_UNIT = (
    r"(?:[cdkm]?m|in|ft|yd|mi|k?g|mg|lbs?|oz|m?[lL]|s|secs?|mins?|h|hrs?|mph|kph|inch(?:es)?|foot|feet|"
    r"(?:yard|mile|(?:centi|milli|kilo)?(?:meter|metre|gram)|pound|ounce|(?:milli)?(?:liter|litre)|gallon|second|minute|hour|day|"
    r"week|month|year|dollar|cent|euro|degree|unit)s?)(?:\^\{?[23]\}?|[²³])?"
)
# The unit behind the number that is the whole answer: `5 cm`, `12 dollars`, `60 km/h`, `9 square feet`.
UNIT = re.compile(
    rf"([-+]?[\d.,]*\d(?:/\d+)?)\s+(?:(?:square|cubic|sq\.?|cu\.?)\s+)?{_UNIT}(?:\s*(?:/|\bper\b)\s*{_UNIT})?\.?"
)
TYPED = str.maketrans({"−": "-", "⁄": "/", "·": r"\cdot ", "°": r"^\circ ", "∞": r"\infty "})
BASE = re.compile(r"(?<=\d)_\{?(\d+)\}?\$*$")
SCIENTIFIC = re.compile(r"(?<![\w.}])(\d+(?:\.\d*)?|\.\d+)[eE]([-+]?\d+)(?![\w.])")


def in_other_bases(one: str, other: str) -> bool:
    """Whether two answers name different bases, as `2516_8` and `2516_{7}` do; math-verify reads neither."""
    bases = [set(BASE.findall(answer)) for answer in (one, other)]
    return all(bases) and bases[0] != bases[1]


def relation_apart(answer: str) -> tuple[str, str]:
    """The relation that an answer begins or ends with, as `<`, `>`, `≤`, `≥` or `≠`, and the rest; "" if none.

    math-verify reads `> 204` as 204.
    """
    found = BARE_RELATION.fullmatch(answer)
    if not found:
        return "", answer
    if found[1]:
        return RELATIONS[found[1]], found[2]
    turned = {"<": ">", ">": "<", "≤": "≥", "≥": "≤"}  # `5 <` is `> 5`
    return turned.get(RELATIONS[found[4]], RELATIONS[found[4]]), found[3]


def _fraction(number: re.Match[str]) -> str:
    """A repeating decimal as a fraction."""
    whole, first, again = number[1], number[2], next(filter(None, number.groups()[2:]))
    above = int(whole + first + again) - int(whole + first)
    return f"\\frac{{{above}}}{{{10 ** len(first) * (10 ** len(again) - 1)}}}"


def readings(answer: str) -> list[str]:
    r"""The LaTeX that an answer may mean; none if numbers stand side by side that are not one number.

    `1 1/2` becomes `1\frac{1}{2}`, and `1 000` and `1_000` become `1000`. `2e-1` may be 0.2 and $2e - 1$.
    """
    whole = IN_TEXT.fullmatch(answer)
    text = SPACES.sub(" ", whole[1] if whole else answer).replace("\\!", "").replace("{,}", ",").translate(TYPED)
    text = ROOT.sub(lambda root: f"\\sqrt{{{root[1] or root[2] or root[3]}}}", SIGN.sub(r"\1\2-", text.strip()))
    text = REPEATING.sub(_fraction, text)
    if measured := UNIT.fullmatch(text):
        text = measured[1]
    text = VULGAR.sub(lambda sign: f" {unicodedata.normalize('NFKC', sign[0]).replace('⁄', '/')} ", text).strip()
    text = SHORT_FRACTION.sub(r"\1{\2}{\3}", text)
    text = MIXED.sub(r"\1\\frac{\2}{\3}", text)
    text = THOUSANDS.sub(lambda number: re.sub(r"\D", "", number[0]), text)
    if SIDE_BY_SIDE.search(text):
        return []
    return list(dict.fromkeys([text, SCIENTIFIC.sub(r"\1\\cdot 10^{\2}", text)]))


def compare_numbers_by(original: Callable[..., bool]) -> Callable[..., bool]:
    """What math-verify's grader compares two expressions by, made strict; `original` is its own function."""

    def equal(gold: Any, found: Any, *precision: int) -> bool:
        import sympy
        from math_verify.grader import is_atomic_or_pct_atomic

        if isinstance(gold, (sympy.MatrixBase, sympy.MatrixExpr)) or isinstance(
            found, (sympy.MatrixBase, sympy.MatrixExpr)
        ):
            return original(gold, found, *precision)  # compares their elements by `equal`
        decimals = gold.has(sympy.Float) or found.has(sympy.Float)
        if gold.free_symbols or found.free_symbols:  # without decimals, left to SymPy's simplification
            return decimals and _terms_agree(sympy.expand(gold.doit()), sympy.expand(found.doit()))
        if not decimals and any(is_atomic_or_pct_atomic(number, sympy.Number) for number in (gold, found)):
            return original(gold, found, *precision)
        return _agree(gold.doit(), found.doit())

    return equal


def _terms_agree(gold: Any, found: Any) -> bool:
    """Whether two sums have the same terms, with coefficients that agree."""
    terms, others = gold.as_coefficients_dict(), found.as_coefficients_dict()
    return terms.keys() == others.keys() and all(_agree(number, others[term]) for term, number in terms.items())


def _agree(gold: Any, found: Any) -> bool:
    """Whether two numbers are the same, or differ by less than one in the last place of the decimal with fewer places.

    So a number agrees with what it is rounded or cut off to, if that has FEWEST_DIGITS digits or more. Trailing zeros
    are no digits: 0.5 and 0.500001 differ, as do 0.333 and 1/3.
    """
    if gold.is_Rational and found.is_Rational:
        return bool(gold == found)  # however many digits they have
    return all(
        _real_agree(_digits(one), _digits(other))
        for one, other in zip(gold.as_real_imag(), found.as_real_imag(), strict=True)
    )


def _digits(number: Any) -> tuple[Decimal, bool]:
    """A real number in decimal, and whether it may be rounded: it is no integer, and was written as a decimal."""
    import sympy

    written = bool(number.has(sympy.Float))
    value = sympy.Float(number.evalf(EXACT_DIGITS), MOST_DIGITS if written else EXACT_DIGITS)
    decimal = Decimal(str(value)).normalize()
    return decimal, written and int(decimal.as_tuple().exponent) < 0


def _real_agree(gold: tuple[Decimal, bool], found: tuple[Decimal, bool]) -> bool:
    difference = abs(gold[0] - found[0])
    decimals = [number for number, may_be_rounded in (gold, found) if may_be_rounded]
    if not decimals:
        return difference <= abs(gold[0]).scaleb(10 - EXACT_DIGITS)
    shorter = max(decimals, key=lambda number: number.as_tuple().exponent).as_tuple()
    if len(shorter.digits) < FEWEST_DIGITS:
        return not difference
    return difference < Decimal(1).scaleb(int(shorter.exponent))
