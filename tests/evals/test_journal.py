"""The journal of an evaluation: what comes back from it is what was put in."""

import math
import struct

import pytest

from evals.journal import Journal


def reopened(path, key, answers):
    with Journal(path, "f") as journal:
        journal.add(key, answers)
    with Journal(path, "f") as journal:
        return journal.get(key)


@pytest.mark.parametrize(
    "value",
    [0.1, -0.0, 1 / 3, 5e-324, 1.7976931348623157e308, math.inf, -math.inf, math.nan]
    + [struct.unpack("f", struct.pack("f", value))[0] for value in (-13.37, 1e-38, 3e38)],
)
def test_numbers_come_back_bit_for_bit(tmp_path, value):
    ((back, flag),) = reopened(tmp_path / "journal", "key", [(value, True)])
    assert struct.pack("d", back) == struct.pack("d", value) and flag is True


def test_text_comes_back(tmp_path):
    texts = ["", "two\nlines\u2028and\x85more\r", "\ufffd\ud800 \U0001f600", "\0"]
    assert reopened(tmp_path / "journal", "key", texts) == texts


def test_each_opening_adds(tmp_path):
    path = tmp_path / "journal"
    for number in range(3):
        with Journal(path, "f") as journal:
            assert [journal.get(str(key)) for key in range(3)] == [[key] if key < number else None for key in range(3)]
            journal.add(str(number), [number])


def test_what_is_added_is_in_the_file_at_once(tmp_path):
    path = tmp_path / "journal"
    with Journal(path, "f") as journal:
        journal.add("key", [1.5])
        assert path.read_bytes().endswith(b'{"key": "key", "answers": [1.5]}\n')


@pytest.mark.parametrize("content", [b"", b'{"journal": 1, "finger', b"{}\n", b"[1]\n", b"\xff\n", b"\n\n"])
def test_what_is_no_journal_is_replaced(tmp_path, content):
    path = tmp_path / "journal"
    path.write_bytes(content + b'{"key": "key", "answers": [1]}\n' * content.endswith(b"\n"))
    with Journal(path, "f") as journal:
        assert journal.get("key") is None
    assert path.read_bytes() == b'{"journal": 1, "fingerprint": "f"}\n'


def test_the_journal_of_another_evaluation_is_replaced_and_that_is_said(tmp_path, caplog):
    path = tmp_path / "journal"
    assert reopened(path, "key", [1]) == [1] and caplog.messages == []
    with Journal(path, "other") as journal:
        assert journal.get("key") is None
    assert caplog.messages == [f"{path} is not of this evaluation and is replaced"]
