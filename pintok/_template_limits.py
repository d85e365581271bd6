"""Bounds for templates of others: how many steps they take, how long texts grow.

jinja2's sandbox keeps a template from reaching out; it does not keep it from looping for hours or
from doubling a text until memory is gone. Here every pass of a loop, every call of a macro and
every text that an operator, a filter or a method makes is counted, and a template that goes beyond
is refused. What honest templates do stays far below.
"""

from __future__ import annotations

import contextlib
import functools
import re
import threading
from collections.abc import Callable, Iterator
from typing import Any, Final

import jinja2
import jinja2.nodes
import jinja2.runtime
import jinja2.sandbox
import jinja2.visitor

STEPS_MAX: Final = 1_000_000
"""Passes of loops, calls of macros, texts made or searched, and one for each 256 characters."""
TEXT_LEN_MAX: Final = 16 << 20
"""Characters of any text, and of all output."""
COUNT_MAX: Final = 1 << 20
"""Largest number that a filter or a method is called with: a width, an indent, a repetition."""
_BITS_MAX: Final = 4096
_CHARACTERS_BITS: Final = 8

_WIDTHS: Final = re.compile(r"\d{7,}|\*")


class LimitError(jinja2.TemplateError):
    """The template went beyond a limit; the message says which."""


def _refuse_long(length: int) -> None:
    if length > TEXT_LEN_MAX:
        raise LimitError(f"it makes a text of more than {TEXT_LEN_MAX} characters")


def _check_made(value: Any) -> Any:
    if isinstance(value, (str, bytes, list, tuple)):
        _refuse_long(len(value))
        _steps.take(1 + (len(value) >> _CHARACTERS_BITS))
    return value


def _check_arguments(args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    for value in (*args, *kwargs.values()):
        if isinstance(value, (int, float)) and not -COUNT_MAX <= value <= COUNT_MAX:
            raise LimitError(f"a filter or method gets the number {value!r:.40}")


def _check_growth(name: str, subject: Any, args: tuple[Any, ...]) -> None:
    """Refuse what would make a long text before it is made."""
    if name == "replace" and len(args) >= 2 and isinstance(subject, str):
        old, new = str(args[0]), str(args[1])
        count = subject.count(old) if old else len(subject) + 1
        _refuse_long(len(subject) + count * len(new))
    elif name == "join" and isinstance(subject, str) and args:  # A method: subject is the glue.
        parts = args[0]
        _refuse_long(len(subject) * len(parts) if hasattr(parts, "__len__") else 0)
    elif name in ("format", "format_map") and isinstance(subject, str):
        if _WIDTHS.search(subject):
            raise LimitError("a format asks for a width of its own or a very large one")
    elif name == "expandtabs" and isinstance(subject, str):
        _refuse_long(len(subject) + subject.count("\t") * int(args[0] if args else 8))


def _guarded(name: str, call: Callable[..., Any], own: int) -> Callable[..., Any]:
    """A filter that counts; `own` arguments of jinja2's own stand before the value."""

    @functools.wraps(call)
    def guarded(*args: Any, **kwargs: Any) -> Any:
        _steps.take()
        _check_arguments(args[own + 1 :], kwargs)
        values = args[own:]
        if name == "join" and len(values) > 1 and hasattr(values[0], "__len__"):
            _refuse_long(len(values[0]) * len(str(values[1])))
        elif name == "indent" and values:
            width = values[1] if len(values) > 1 else kwargs.get("width", 4)
            _refuse_long(str(values[0]).count("\n") * (width if isinstance(width, int) else 16))
        elif values:
            _check_growth(name, values[0], values[1:])
        return _check_made(call(*args, **kwargs))

    return guarded


class _Steps(threading.local):
    """How many steps the rendering of this thread may still take."""

    left = 0
    shared = False
    """Several renderings take from the same."""

    def take(self, count: int = 1) -> None:
        self.left -= count
        if self.left < 0:
            raise LimitError(f"it takes more than {STEPS_MAX} steps")


_steps: Final = _Steps()


class _Counted(jinja2.visitor.NodeTransformer):
    """Puts a step into every loop and macro, and a check around what is joined or searched."""

    def _step(self) -> jinja2.nodes.Output:
        call = jinja2.nodes.Call(jinja2.nodes.EnvironmentAttribute("take_step"), [], [], None, None)
        return jinja2.nodes.Output([call])

    def visit_For(self, node: jinja2.nodes.For) -> jinja2.nodes.Node:
        self.generic_visit(node)
        node.body.insert(0, self._step().set_lineno(node.lineno))
        return node

    def visit_Macro(self, node: jinja2.nodes.Macro) -> jinja2.nodes.Node:
        self.generic_visit(node)
        node.body.insert(0, self._step().set_lineno(node.lineno))
        return node

    def visit_Concat(self, node: jinja2.nodes.Concat) -> jinja2.nodes.Node:
        self.generic_visit(node)
        attribute = jinja2.nodes.EnvironmentAttribute("check_made")
        return jinja2.nodes.Call(attribute, [node], [], None, None).set_lineno(node.lineno)

    def visit_Operand(self, node: jinja2.nodes.Operand) -> jinja2.nodes.Node:
        self.generic_visit(node)
        if node.op in ("in", "notin"):
            attribute = jinja2.nodes.EnvironmentAttribute("check_made")
            node.expr = jinja2.nodes.Call(attribute, [node.expr], [], None, None)
            node.expr.set_lineno(node.lineno)
        return node


class BoundedEnvironment(jinja2.sandbox.ImmutableSandboxedEnvironment):
    """jinja2's immutable sandbox with the limits of this module.

    Filters are guarded by `guard_filters`, to be called when all of them are there.
    """

    intercepted_binops = frozenset(("+", "*", "**", "%", "-", "/", "//"))

    def take_step(self) -> str:
        """Count one step. Raises LimitError."""
        _steps.take()
        return ""

    def check_made(self, value: Any) -> Any:
        """Count the steps of a value and refuse a text that is too long. Raises LimitError."""
        return _check_made(value)

    def guard_filters(self) -> None:
        """Make every filter count."""
        for name, call in list(self.filters.items()):
            own = 1 if hasattr(call, "jinja_pass_arg") else 0
            self.filters[name] = _guarded(name, call, own)

    def _parse(self, source: str, name: str | None, filename: str | None) -> jinja2.nodes.Template:
        tree = super()._parse(source, name, filename)
        counted: jinja2.nodes.Template = _Counted().visit(tree)
        return counted

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        _steps.take()
        if operator == "*":
            self._check_product(left, right)
        elif operator == "**":
            self._check_power(left, right)
        elif operator == "%" and isinstance(left, str) and _WIDTHS.search(left):
            raise LimitError("a format asks for a width of its own or a very large one")
        elif operator == "+" and hasattr(left, "__len__") and hasattr(right, "__len__"):
            _refuse_long(len(left) + len(right))
        return _check_made(super().call_binop(context, operator, left, right))

    def _check_product(self, left: Any, right: Any) -> None:
        for value, count in ((left, right), (right, left)):
            if hasattr(value, "__len__") and isinstance(count, int):
                _refuse_long(len(value) * max(count, 0))
        if isinstance(left, int) and isinstance(right, int):
            self._check_bits(left.bit_length() + right.bit_length())

    def _check_power(self, left: Any, right: Any) -> None:
        if isinstance(left, int) and isinstance(right, int):
            self._check_bits(max(left.bit_length(), 1) * abs(right))

    def _check_bits(self, bits: int) -> None:
        if bits > _BITS_MAX:
            raise LimitError(f"it makes a number of more than {_BITS_MAX} bits")

    def call(__self, __context: Any, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        own = getattr(__obj, "__self__", None)
        if own is __self or isinstance(__obj, jinja2.runtime.Macro):  # They count themselves.
            return super().call(__context, __obj, *args, **kwargs)
        _steps.take()
        if __obj is not range:  # The sandbox has a limit of its own for it.
            _check_arguments(args, kwargs)
        _check_growth(getattr(__obj, "__name__", ""), own, args)
        return _check_made(super().call(__context, __obj, *args, **kwargs))


@contextlib.contextmanager
def one_allowance() -> Iterator[None]:
    """Renderings inside take their steps together, as if they were one."""
    before = _steps.left, _steps.shared
    _steps.left, _steps.shared = STEPS_MAX, True
    try:
        yield
    finally:
        _steps.left, _steps.shared = before


def render(template: jinja2.Template, variables: dict[str, Any]) -> str:
    """The template's output. Raises LimitError beyond a limit, and whatever the template raises."""
    if _steps.shared:
        return "".join(_bounded(template.generate(variables)))
    with one_allowance():
        return "".join(_bounded(template.generate(variables)))


def _bounded(chunks: Iterator[str]) -> Iterator[str]:
    length = 0
    for chunk in chunks:
        length += len(chunk)
        _refuse_long(length)
        yield chunk
