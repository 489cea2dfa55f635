"""The tool that a model calls between <|python_start|> and <|python_end|>: sums, and counting letters.

Expressions are parsed and walked, never run: names, calls, attributes and powers are out of reach.
The two forms come from nanochat's training data (GSM8K's annotations and SpellingBee's counts).
"""

import ast
import operator
import re

MAX_CHARACTERS = 256
MAX_DEPTH = 32
MAX_MAGNITUDE = 1e100  # untuned; str() of a larger integer would fill a small model's context

_ARITHMETIC = re.compile(r"[0-9+\-*/.() ]+")
_THOUSANDS_COMMA = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")
_QUOTED = r"""(['"])((?:(?!\{quote})[^\\\n])*)\{quote}"""
_COUNT = re.compile(rf"\s*{_QUOTED.format(quote=1)}\.count\({_QUOTED.format(quote=3)}\)\s*")
_BINARY = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
}
_UNARY = {ast.UAdd: operator.pos, ast.USub: operator.neg}


def calculate(expression: str) -> str | None:
    """Return what Python prints for a sum or for `"text".count("x")`, None for anything else.

    Sums have + - * / // ( ) and numbers such as 1,234.5. Also None beyond the limits above and for x/0.
    """
    if len(expression) > MAX_CHARACTERS:
        return None
    if match := _COUNT.fullmatch(expression):
        return str(match[2].count(match[4]))
    expression = _THOUSANDS_COMMA.sub("", expression).strip()
    if not _ARITHMETIC.fullmatch(expression):
        return None
    try:
        value = _evaluate(ast.parse(expression, mode="eval").body, depth=0)
    except (SyntaxError, ArithmeticError, ValueError, RecursionError, MemoryError):
        return None  # the parser raises the last two for deep nesting
    return str(value)


def _evaluate(node: ast.expr, *, depth: int) -> int | float:
    """Return the value of a node. Raises ValueError for anything but a sum, and beyond the limits."""
    if depth > MAX_DEPTH:
        raise ValueError("too deep")
    # 1 + 2 + 3 + … nests to the left with every term. A loop follows that, so that only brackets add depth
    operations: list[ast.BinOp] = []
    while isinstance(node, ast.BinOp):
        operations.append(node)
        node = node.left
    if isinstance(node, ast.Constant) and isinstance(node.value, int | float):
        value = _limited(node.value)
    elif isinstance(node, ast.UnaryOp) and (unary := _UNARY.get(type(node.op))):
        value = _limited(unary(_evaluate(node.operand, depth=depth + 1)))
    else:
        raise ValueError("not a sum")
    for operation in reversed(operations):
        if (binary := _BINARY.get(type(operation.op))) is None:
            raise ValueError("not a sum")
        value = _limited(binary(value, _evaluate(operation.right, depth=depth + 1)))
    return value


def _limited(value: int | float) -> int | float:
    if abs(value) > MAX_MAGNITUDE:
        raise ValueError("too large")
    return value
