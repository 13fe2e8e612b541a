"""What the processes of a sandbox say to each other: plain values as tagged bytes, and frames of them.

Plain are None, bool, int, float, complex, str, bytes, these types themselves (a test may say `keep(values, int)`), and
lists, tuples, dicts, sets and frozensets of plain values. Nothing else is ever made out of bytes that a model's
program sent: no pickle, no code, no class of its own. Whatever is not plain stays where it is and travels as a handle,
a number with the name of its type.

    N T F   None, True, False            s9:  b9:          UTF-8 (lone surrogates kept), bytes, by length
    i-1f;   int, in hexadecimal          l3:  t3:  S3:  Z3:    list, tuple, set, frozenset of so many values
    f0x1p1; float, `float.hex`           d3:               dict of so many keys, each with its value
    c..;..; complex, two floats          kint;             the type int
                                         h7:4:Node         handle 7, of a type named Node

It is loaded at every start of a sandbox and therefore imports next to nothing.
"""

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

MOST_BYTES = 4 << 20  # of a frame
_MOST_DEPTH = 100


class WireError(ValueError):
    """Bytes that are no frame, or a value that does not fit in one."""


# Values ------------------------------------------------------------------------------------------------------


def encode(value: object, handle: "Callable[[Any], tuple[int, str]]") -> bytes:
    """A value as bytes; instances of subclasses of plain types travel as their plain base.

    Args:
        value: any object.
        handle: number and name of what is not plain; it may refuse by raising.

    Raises:
        WireError: nested more than 100 deep (or in itself), or more bytes than a frame holds.
    """
    pieces: list[bytes] = []
    _encode(value, pieces, handle, 0)
    encoded = b"".join(pieces)
    if len(encoded) > MOST_BYTES:
        raise WireError(f"a value of {len(encoded)} bytes is too large: at most {MOST_BYTES}")
    return encoded


def _encode(value: "Any", pieces: list[bytes], handle: "Callable[[Any], tuple[int, str]]", depth: int) -> None:
    if depth > _MOST_DEPTH:
        raise WireError(f"a value nested more than {_MOST_DEPTH} deep")
    if value is None or value is True or value is False:
        pieces.append(b"N" if value is None else b"T" if value else b"F")
    elif isinstance(value, type) and _TYPES.get(value.__name__.encode()) is value:
        pieces.append(b"k%s;" % value.__name__.encode())
    elif isinstance(value, int):
        pieces.append(b"i%s;" % format(int(value), "x").encode())
    elif isinstance(value, float):
        pieces.append(b"f%s;" % float.hex(value).encode())
    elif isinstance(value, complex):
        pieces.append(b"c%s;%s;" % (value.real.hex().encode(), value.imag.hex().encode()))
    elif isinstance(value, str):
        text = str.encode(value, "utf-8", "surrogatepass")
        pieces += (b"s%d:" % len(text), text)
    elif isinstance(value, bytes | bytearray):
        pieces += (b"b%d:" % len(value), bytes(value))
    elif isinstance(value, dict):
        pieces.append(b"d%d:" % len(value))
        for key, held in value.items():
            _encode(key, pieces, handle, depth + 1)
            _encode(held, pieces, handle, depth + 1)
    elif isinstance(value, list | tuple | set | frozenset):
        kind = next(tag for tag, made in _CONTAINERS.items() if isinstance(value, made))
        pieces.append(b"%s%d:" % (kind, len(value)))
        for held in value:
            _encode(held, pieces, handle, depth + 1)
    else:
        number, name = handle(value)
        text = name.encode("utf-8", "replace")
        pieces += (b"h%d:%d:" % (number, len(text)), text)


_CONTAINERS: "dict[bytes, Any]" = {b"l": list, b"t": tuple, b"S": set, b"Z": frozenset}
_TYPES: "dict[bytes, type]" = {
    made.__name__.encode(): made
    for made in (bool, int, float, complex, str, bytes, list, tuple, dict, set, frozenset, type(None))
}
_CONSTANTS = {b"N": None, b"T": True, b"F": False}


def decode(encoded: bytes, handle: "Callable[[int, str], Any]") -> "Any":
    """The value that bytes stand for.

    Args:
        encoded: from anywhere.
        handle: makes something of the number and name of a handle.

    Raises:
        WireError: they stand for no value.
    """
    try:
        value, end = _decode(encoded, 0, handle, 0)
    except (ValueError, TypeError, OverflowError, LookupError) as error:
        raise WireError(f"no value: {error}") from error
    if end != len(encoded):
        raise WireError("no value: something follows it")
    return value


def _decode(encoded: bytes, at: int, handle: "Callable[[int, str], Any]", depth: int) -> "tuple[Any, int]":
    tag = encoded[at : at + 1]
    at += 1
    if tag in _CONSTANTS:
        return _CONSTANTS[tag], at
    if tag in (b"i", b"f", b"c", b"k"):
        text, at = _until(encoded, b";", at)
        if tag == b"k":
            return _TYPES[text], at
        if tag == b"i":
            return int(text, 16), at
        real = float.fromhex(text.decode())
        if tag == b"f":
            return real, at
        text, at = _until(encoded, b";", at)
        return complex(real, float.fromhex(text.decode())), at
    size_text, at = _until(encoded, b":", at)
    size = int(size_text)
    if size < 0 or depth > _MOST_DEPTH:
        raise WireError("a size below 0, or nested too deep")
    if tag in (b"s", b"b"):
        held, at = _bytes(encoded, at, size)
        return held.decode("utf-8", "surrogatepass") if tag == b"s" else held, at
    if tag == b"h":
        length, at = _until(encoded, b":", at)
        name, at = _bytes(encoded, at, int(length))
        return handle(size, name.decode("utf-8", "replace")), at
    if tag != b"d" and tag not in _CONTAINERS:
        raise WireError(f"unknown tag {tag!r}")
    values = []
    for _ in range(size * (2 if tag == b"d" else 1)):
        value, at = _decode(encoded, at, handle, depth + 1)
        values.append(value)
    made = dict(zip(values[::2], values[1::2], strict=True)) if tag == b"d" else _CONTAINERS[tag](values)
    return made, at


def _until(encoded: bytes, mark: bytes, at: int) -> tuple[bytes, int]:
    end = encoded.index(mark, at)
    return encoded[at:end], end + 1


def _bytes(encoded: bytes, at: int, size: int) -> tuple[bytes, int]:
    if not 0 <= size <= len(encoded) - at:
        raise WireError("a text longer than the frame")
    return encoded[at : at + size], at + size


def plain_only(value: object) -> tuple[int, str]:
    """The `handle` of who sends plain values only."""
    raise WireError(f"{type(value).__name__} is not a plain value")


def no_handles(number: int, name: str) -> object:
    """The `handle` of who receives plain values only."""
    raise WireError(f"handle {number} of {name}, where only plain values are expected")


# Frames ------------------------------------------------------------------------------------------------------


def write_frame(descriptor: int, payload: bytes) -> None:
    """A payload behind its length in four bytes."""
    left = memoryview(len(payload).to_bytes(4, "little") + payload)
    while left:
        left = left[os.write(descriptor, left) :]


def read_frame(descriptor: int) -> bytes | None:
    """The next payload; None at the end of the stream, also in the midst of a frame.

    Raises:
        WireError: a length above the limit.
    """
    head = read_exactly(descriptor, 4)
    if head is None:
        return None
    size = int.from_bytes(head, "little")
    if size > MOST_BYTES:
        raise WireError(f"a frame of {size} bytes")
    return read_exactly(descriptor, size)


def read_exactly(descriptor: int, size: int) -> bytes | None:
    """So many bytes; None where the stream ends before."""
    pieces = []
    while size:
        piece = os.read(descriptor, min(size, 1 << 16))
        if not piece:
            return None
        pieces.append(piece)
        size -= len(piece)
    return b"".join(pieces)
