"""Checks arrays against their annotations while tests run, at a cost that leaves time for the tests.

jaxtyping's own import hook wraps every function, whether or not it names an array, and checks each call of one: 48 %
of what was sampled of the tests below Ray. Here those of modules and classes that name arrays are checked, at their
first calls in each test; functions within functions are not.
"""

import dataclasses
import inspect
import sys
from collections import Counter
from collections.abc import Callable
from functools import wraps
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from types import ModuleType
from typing import Any, get_args

import torch
from beartype import beartype
from jaxtyping import AbstractArray, jaxtyped

CHECKED = 20
"""Calls of a function that are checked in each test."""
calls = Counter[int]()
"""Calls in this test, by function."""


def names_array(annotation: Any) -> bool:
    """Whether an array's shape or kind of numbers is part of an annotation."""
    if isinstance(annotation, type) and issubclass(annotation, AbstractArray):
        return True
    return any(names_array(part) for part in get_args(annotation))


def limited(function: Callable[..., Any], checked: Callable[..., Any]) -> Callable[..., Any]:
    """Call `checked` at first, and `function` after that."""

    @wraps(function)
    def called(*args: Any, **kwargs: Any) -> Any:
        if torch.compiler.is_compiling():  # a count would be compiled in
            return function(*args, **kwargs)
        calls[id(function)] += 1
        return (checked if calls[id(function)] <= CHECKED else function)(*args, **kwargs)

    return called


def check(function: Callable[..., Any]) -> Callable[..., Any]:
    """Check a function's arguments and what it returns, where it names arrays."""
    # what makes a context of a generator keeps the generator's annotation
    is_context = hasattr(function, "__wrapped__") and inspect.isgeneratorfunction(
        inspect.unwrap(function)
    )
    annotations = inspect.get_annotations(function).values()
    if is_context or not any(map(names_array, annotations)):
        return function
    return limited(function, jaxtyped(function, typechecker=beartype))


def check_class(cls: type) -> None:
    """Check the methods of a class, and its fields where it is a dataclass."""
    for name, value in list(vars(cls).items()):
        if inspect.isfunction(value):
            setattr(cls, name, check(value))
        elif isinstance(value, classmethod | staticmethod):
            setattr(cls, name, type(value)(check(value.__func__)))
        elif isinstance(value, property) and value.fget is not None:
            setattr(cls, name, property(check(value.fget), value.fset, value.fdel, value.__doc__))
    if dataclasses.is_dataclass(cls) and any(names_array(f.type) for f in dataclasses.fields(cls)):
        init = cls.__init__
        jaxtyped(cls, typechecker=beartype)
        cls.__init__ = limited(init, cls.__init__)  # type: ignore[misc]


class Loader(SourceFileLoader):
    """Runs a module, and wraps what it defines."""

    def exec_module(self, module: ModuleType) -> None:
        """Wrap functions where all that import them will see it."""
        super().exec_module(module)
        for name, value in list(vars(module).items()):
            if getattr(value, "__module__", None) != module.__name__:
                continue
            if inspect.isfunction(value):
                setattr(module, name, check(value))
            elif inspect.isclass(value):
                check_class(value)


class Finder(MetaPathFinder):
    """Finds assay's modules before the usual finder does."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        """Give a module of assay the loader above."""
        if name.partition(".")[0] != "assay":
            return None
        spec = PathFinder.find_spec(name, path, target)
        if spec is not None and isinstance(spec.loader, SourceFileLoader):
            spec.loader = Loader(spec.loader.name, spec.loader.path)
        return spec


def install() -> None:
    """Check whatever of assay is imported from here on."""
    sys.meta_path.insert(0, Finder())
