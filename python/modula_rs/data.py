"""Data sets to train on: labelled examples (images) and text, both read by index inside compiled code.

>>> import numpy as np
>>> from modula_rs import data
>>> text = data.Text.of("to be or not to be, that is the question. " * 20, context=8)
>>> x, y = text.batch(text.arrays, np.array([0, 5]))
>>> x.shape, y.shape, text.classes
((2, 8), (2, 8), 15)
"""

from __future__ import annotations

import hashlib
import sysconfig
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from modula_rs import archives, arrays
from modula_rs.checks import size
from modula_rs.describe import describe
from modula_rs.files import expect_file

#: The share of the examples or of the text, from its end, that is held out.
HELD_OUT = 0.1

#: More classes than this are refused: the network would have an output for each, so a label is probably wrong.
MOST_CLASSES = 1_000_000

#: Characters that are turned into tokens at a time, which bounds the memory for intermediate results.
_PIECE = 1 << 20


class DataError(ValueError):
    """Data that cannot be read or do not have the form expected."""


class Dataset(Protocol):
    """Inputs and targets by index; some indices are for training and some are held out."""

    @property
    def name(self) -> str:
        """The name that the user gave."""

    @property
    def arrays(self) -> tuple[NDArray[Any], ...]:
        """The arrays from which :meth:`batch` reads; they are arguments of the compiled code."""

    @property
    def train(self) -> range:
        """Indices to train on."""

    @property
    def test(self) -> range:
        """Indices held out."""

    @property
    def classes(self) -> int:
        """Number of different targets."""

    def batch(self, arrays: tuple[Any, ...], index: Any) -> tuple[Any, Any]:
        """Inputs and targets at an array of indices, in the arrays' own library."""


@dataclass(frozen=True)
class Examples:
    """Inputs of shape (n, ...) with one integer label each; the last ``held_out`` are not trained on.

    >>> import numpy as np
    >>> from modula_rs.data import Examples
    >>> examples = Examples("dots", np.zeros((10, 3), np.float32), np.arange(10, dtype=np.int32) % 2, held_out=2)
    >>> examples.train, examples.test, examples.classes, examples.features
    (range(0, 8), range(8, 10), 2, 3)
    """

    name: str
    inputs: NDArray[Any]
    labels: NDArray[np.int32]
    held_out: int

    def __post_init__(self) -> None:
        check_examples(self.name, self.inputs, self.labels)
        if not 1 <= size("held_out", self.held_out) < len(self.inputs):
            raise DataError(f"{self.name}: held_out must be at least 1 and below the {len(self.inputs)} examples, got {self.held_out}")

    @property
    def arrays(self) -> tuple[NDArray[Any], ...]:
        """The inputs and the labels."""
        return self.inputs, self.labels

    @property
    def train(self) -> range:
        """All but the last examples."""
        return range(len(self.inputs) - self.held_out)

    @property
    def test(self) -> range:
        """The last examples."""
        return range(len(self.inputs) - self.held_out, len(self.inputs))

    @property
    def classes(self) -> int:
        """Number of classes."""
        return int(self.labels.max()) + 1

    @property
    def features(self) -> int:
        """The number of entries in one input."""
        return int(np.prod(self.inputs.shape[1:]))

    def batch(self, arrays: tuple[Any, ...], index: Any) -> tuple[Any, Any]:
        """Inputs and labels at the indices."""
        inputs, labels = arrays
        return inputs[index], labels[index]


@dataclass(frozen=True)
class Text:
    """A sequence of tokens, read in windows of ``context``. The target of each token is the next token."""

    name: str
    tokens: NDArray[np.int32]
    vocabulary: str
    context: int = 64

    @classmethod
    def of(cls, text: str, context: int = 64, name: str = "text") -> Text:
        """The characters of a text as tokens; DataError if the text is too short for one window in training and one held out."""
        vocabulary = "".join(sorted(set(text)))
        known = np.array([ord(character) for character in vocabulary], np.uint32)
        tokens = np.empty(len(text), np.int32)
        for start in range(0, len(text), _PIECE):
            codes = np.frombuffer(text[start : start + _PIECE].encode("utf-32-le", "surrogatepass"), np.uint32)
            tokens[start : start + _PIECE] = np.searchsorted(known, codes)
        return cls(name, tokens, vocabulary).with_context(context)

    def with_context(self, context: int) -> Text:
        """The same text in windows of another length."""
        try:
            context = size("the context", context, 1)
        except (TypeError, ValueError) as error:
            raise DataError(str(error)) from None
        if len(self.tokens) * HELD_OUT < context + 1:
            raise DataError(f"{self.name}: {len(self.tokens)} characters are too few for windows of {context}")
        return replace(self, context=context)

    @property
    def arrays(self) -> tuple[NDArray[Any], ...]:
        """The tokens."""
        return (self.tokens,)

    @property
    def train(self) -> range:
        """The starts of the windows that end before the held-out text."""
        return range(self._border - self.context)

    @property
    def test(self) -> range:
        """The starts of the windows in the held-out text."""
        return range(self._border, len(self.tokens) - self.context)

    @property
    def _border(self) -> int:
        return len(self.tokens) - int(len(self.tokens) * HELD_OUT)

    @property
    def classes(self) -> int:
        """Number of different characters."""
        return len(self.vocabulary)

    def batch(self, arrays: tuple[Any, ...], index: Any) -> tuple[Any, Any]:
        """The windows that start at the indices, and as targets the windows one token later."""
        (tokens,) = arrays
        windows = tokens[index[..., None] + np.arange(self.context + 1)]
        return windows[..., :-1], windows[..., 1:]


def digits() -> Examples:
    """The 1,797 handwritten digits that come with scikit-learn, as (8, 8, 1) images."""
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    return _examples("digits", images.reshape(-1, 8, 8, 1), labels, None, None)


def stdlib(characters: int = 2_000_000, context: int = 64) -> Text:
    """The first ``characters`` characters of the source of Python's standard library, a text that is on every machine."""
    root = Path(sysconfig.get_path("stdlib"))
    parts: list[str] = []
    length = 0
    for path in sorted(root.glob("*.py")):
        text = path.read_text(encoding="utf-8", errors="ignore")
        parts.append(text if text.isascii() else text.encode("ascii", "ignore").decode())
        length += len(parts[-1])
        if length >= characters:
            break
    return Text.of("".join(parts)[:characters], context, "stdlib")


def load(source: str, context: int = 64) -> Examples | Text:
    """A data set by name: ``digits``, ``stdlib``, or a file, ``.txt`` (UTF-8 text) or ``.npz`` (x, y or x_train, y_train, x_test, y_test).

    For anything else, raises DataError in one line that says what was expected.
    """
    if source == "digits":
        return digits()
    if source == "stdlib":
        return stdlib(context=context)
    path = Path(source)
    if path.suffix not in (".txt", ".npz"):
        raise DataError(f"data is digits, stdlib, or a file ending in .txt or .npz, got {source}")
    try:
        if path.suffix == ".txt":
            expect_file(path)
            return Text.of(path.read_text(encoding="utf-8"), context, path.name)
        return _from_archive(path)
    except DataError:
        raise
    except (OSError, ValueError, MemoryError) as error:
        raise DataError(f"{source}: {getattr(error, 'strerror', None) or error or type(error).__name__}") from None


def fingerprint(dataset: Dataset) -> str:
    """A short hash of the content, by which a data set is recognised."""
    digest = hashlib.sha256()
    for array in dataset.arrays:
        digest.update(f"{array.dtype}{array.shape}".encode())
        digest.update(np.ascontiguousarray(array).data)
    digest.update(f"{dataset.train}{dataset.test}".encode())
    if type(dataset) not in (Examples, Text):  # for a user's class, the code that makes batches counts too
        computed = {name for name, member in vars(type(dataset)).items() if isinstance(member, cached_property)}
        state = {name: value for name, value in getattr(dataset, "__dict__", {}).items() if name not in computed}
        digest.update(describe([type(dataset), state], code=True).encode("utf-8", "surrogatepass"))
    return digest.hexdigest()[:16]


def order(indices: range, seed: int, steps: Sequence[int], batch_size: int) -> NDArray[np.int32]:
    """Batches of indices for these steps, shape (len(steps), batch_size). Each depends on seed and step alone, so a run can be resumed."""
    rows = [np.random.default_rng([seed, step]).integers(indices.start, indices.stop, batch_size) for step in steps]
    return np.array(rows, np.int32).reshape(len(steps), batch_size)


def _from_archive(path: Path) -> Examples:
    names = archives.names(path)
    training = next((keys for keys in (("x_train", "y_train"), ("x", "y")) if set(keys) <= set(names)), None)
    test = [name for name in ("x_test", "y_test") if name in names]
    if training is None:
        expected = "x_train and y_train (x_test, y_test), or x and y"
        raise DataError(f"{path.name}: expected arrays {expected}, got {', '.join(names) or 'none'}")
    unused = sorted(set(names) - {*training, *test})
    if unused or len(test) == 1:
        raise DataError(f"{path.name}: {' and '.join(unused or test)} would not be used beside {' and '.join(training)}")
    found = archives.read(path, [*training, *test])
    return _examples(path.name, *found.values(), *[None] * (4 - len(found)))


def check_examples(name: str, inputs: NDArray[Any], labels: NDArray[Any]) -> None:
    """DataError unless the inputs are real numbers, with one class number for each."""
    if arrays.library(inputs) is None or arrays.library(labels) is None:
        raise DataError(f"{name}: inputs and labels must be arrays, got {type(inputs).__name__} and {type(labels).__name__}")
    if labels.ndim != 1 or labels.dtype.kind not in "iu" or (len(labels) and labels.min() < 0):
        raise DataError(f"{name}: labels must be one integer >= 0 per example, got {labels.dtype} of shape {labels.shape}")
    if len(labels) and labels.max() >= MOST_CLASSES:
        raise DataError(f"{name}: labels must be the numbers of classes, below {MOST_CLASSES}, got {labels.max()}")
    if inputs.ndim < 2 or len(inputs) != len(labels) or not (inputs.dtype.kind in "iufb" or arrays.is_floating(inputs.dtype)):
        raise DataError(f"{name}: inputs must be numbers of shape (n, ...) for {len(labels)} labels, got {inputs.dtype} {inputs.shape}")
    if 0 in inputs.shape[1:]:
        raise DataError(f"{name}: inputs must have features, got shape {inputs.shape}")


def _examples(name: str, x: NDArray[Any], y: NDArray[Any], x_test: NDArray[Any] | None, y_test: NDArray[Any] | None) -> Examples:
    """Examples with inputs of mean 0 per channel and RMS 1 over the training part. They are shuffled before a part is held out."""
    check_examples(name, x, y)
    if len(x) < 2 / HELD_OUT:
        raise DataError(f"{name}: {len(x)} examples are too few")
    if x_test is None or y_test is None:
        shuffled = np.random.default_rng(0).permutation(len(x))
        x, y, test = x[shuffled], y[shuffled], int(len(x) * HELD_OUT)
    else:
        check_examples(name, x_test, y_test)
        if x.shape[1:] != x_test.shape[1:]:
            raise DataError(f"{name}: examples have shape {x.shape[1:]}, those held out {x_test.shape[1:]}")
        if not len(x_test):
            raise DataError(f"{name}: x_test holds no examples: leave it out, and a tenth of the others is held out")
        x, y, test = np.concatenate([x, x_test]), np.concatenate([y, y_test]), len(x_test)
    return Examples(name, _normalised(name, x, len(x) - test), y.astype(np.int32), test)


def _normalised(name: str, x: NDArray[Any], training: int) -> NDArray[np.float32]:
    """The inputs in float32, with mean 0 per channel and RMS 1 over the first ``training``.

    DataError if these are all equal, or if float32 cannot hold the result.
    """
    if not np.isfinite(x).all():
        raise DataError(f"{name}: inputs must be finite")
    seen = x[:training]
    exponent = int(np.frexp(np.maximum(np.float64(seen.max()), -np.float64(seen.min())))[1])
    if abs(exponent) > 32:  # a power of two, which cancels in the result, keeps squares in the range of float32
        x = np.ldexp(x.astype(np.float64), -exponent)
    with np.errstate(over="ignore"):
        x = x.astype(np.float32)
    seen = x[:training]
    x -= seen.mean(tuple(range(x.ndim - 1)))
    size = float(np.sqrt(np.mean(np.square(seen))))
    if size == 0.0:
        raise DataError(f"{name}: the inputs of all examples are equal, so that nothing is left of them with mean 0")
    x /= size
    if not np.isfinite(x).all():
        raise DataError(f"{name}: inputs held out must not be larger than those of the training by a factor of 1e38")
    return x
