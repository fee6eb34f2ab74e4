"""Functions of the user's own files, named ``FILE.py:FUNCTION`` on the command line. Whatever goes wrong in them is told in one line."""

from __future__ import annotations

import difflib
import importlib.util
import inspect
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast


def load_function(name: str) -> Callable[..., Any]:
    """The function that ``FILE.py:FUNCTION`` names. The file is run once; files beside it can be imported by it.

    Raises:
        ValueError: there is no such file or function, or the file raises an error; the message is one line.
    """
    file, _, function = name.rpartition(":")
    path = Path(file)
    if not file or path.suffix != ".py" or not function.isidentifier():
        raise ValueError(f"--network is FILE.py:FUNCTION, got {name}")
    if not path.is_file():
        raise ValueError(f"{file}: no such file")
    module = _run(path.resolve())
    found = getattr(module, function, None)
    if not callable(found):
        own = [key for key, value in vars(module).items() if inspect.isfunction(value) and value.__module__ == module.__name__]
        close = difflib.get_close_matches(function, own, 1) or own[:5]
        raise ValueError(f"{file}: no function {function}" + (f"; it has {', '.join(close)}" if close else ""))
    return cast(Callable[..., Any], found)


def call(function: Callable[..., Any], size: Any) -> Any:
    """What a user's function returns for a size; a function without parameters is called without it.

    Raises:
        ValueError: the function raises an error, or takes more than a size; the message is one line, with the place in the user's file.
    """
    try:
        takes = [p for p in inspect.signature(function).parameters.values() if p.default is p.empty and p.kind is not p.VAR_KEYWORD]
    except ValueError:  # a callable of another language, which does not tell
        takes = [None]  # type: ignore[list-item]
    if len(takes) > 1:
        raise ValueError(
            f"{function.__name__} must take a size (with width, depth, mass and context), or nothing, got {len(takes)} arguments"
        )
    try:
        return function(size) if takes else function()
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # SystemExit too
        raise ValueError(_told(error, Path(inspect.getfile(inspect.unwrap(function))))) from error


def _run(path: Path) -> Any:
    """The module of a file."""
    name = f"modula_rs_user_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses in the file look their module up
    if str(path.parent) not in sys.path:
        sys.path.insert(0, str(path.parent))
    try:
        spec.loader.exec_module(module)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # SystemExit too
        del sys.modules[name]
        raise ValueError(_told(error, path)) from error
    return module


def _told(error: BaseException, path: Path) -> str:
    """An error in one line: the last line of the user's file that led to it, its type, and its message."""
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if Path(frame.filename) == path]
    line = error.lineno if isinstance(error, SyntaxError) and error.filename == str(path) else lines[-1] if lines else None
    message = error.msg if isinstance(error, SyntaxError) else str(error)
    # Errors of the library itself are sentences already, and need no type.
    kind = "" if type(error).__module__.startswith("modula_rs") else f"{type(error).__name__}: "
    return f"{path.name}{f':{line}' if line else ''}: {kind}{' '.join(message.split()) or 'no message'}"
