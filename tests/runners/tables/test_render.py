"""What the terminal shows and which files are written."""

import dataclasses
import io
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from runners.tables.formats import to_csv, to_latex, to_markdown, values_to_csv
from runners.tables.page import to_html
from runners.tables.render import render_terminal, write_files
from runners.tables.table import build_table
from tests.runners.tables.shown_table import NASTY, RUNS, config, run, table


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """(the table with the nasty label, the folder of its files, what write_files returned)."""
    shown, folder = table(NASTY), tmp_path_factory.mktemp("outputs") / "new" / "table"
    return shown, folder, write_files(shown, folder)


def printed(shown, width=100, encoding="utf-8"):
    buffer = io.BytesIO()
    console = Console(file=io.TextIOWrapper(buffer, encoding=encoding), width=width, highlight=False)
    render_terminal(shown, console)
    console.file.flush()
    return buffer.getvalue().decode(encoding)


def test_the_terminal_shows_numbers_verdicts_relations_claims_and_footnotes():
    text = printed(table())
    squeezed = re.sub(r"[ \n]+", " ", text)
    assert "52.0 ± 2.5 (3)" in text  # 51, 52, 53: the hand-worked 2.484
    assert "90.0 (1)" in text  # one seed, no interval
    assert "(2 of 3)" in text
    assert "paper 52.0" in text and "reproduced" in text
    assert "paper +5.42 (full)" in text and "not comparable" in text
    assert "FLOW − Standard FT" in text and "+19.0 ± 12.7 (2 of 3)" in text  # 20, 18: 12.706 * 1.414 / 1.414
    assert "FLOW keeps more" in text and "2 of 3 pairs: FLOW seed 3 failed" in squeezed
    assert "failed (loss is not finite; outputs/flow-3)" in squeezed
    assert "Part" not in text  # a hidden column


@pytest.mark.parametrize("form", [printed, to_markdown])
def test_the_legend_of_published_numbers_is_shown_only_where_there_are_some(form):
    assert "Under a number:" in form(table())
    without = form(table(published=()))
    assert "Under a number:" not in without and "half-width" in without


@pytest.mark.parametrize("form", [printed, to_markdown, to_latex, lambda shown: to_html(shown, [])])
@pytest.mark.parametrize("setting", ["ours", "partly ours"])
def test_every_form_says_whose_setting_it_is_unless_it_is_the_papers(form, setting):
    assert f"setting: {setting}" in form(dataclasses.replace(table(), setting=setting))
    assert "setting:" not in form(table())


def test_the_terminal_output_fits_100_columns_and_has_no_codes_when_piped():
    text = printed(table())
    assert max(map(len, text.splitlines())) <= 100
    assert "\x1b" not in text


def test_colours_are_used_in_a_terminal():
    buffer = io.StringIO()
    render_terminal(table(), Console(file=buffer, width=100, force_terminal=True, color_system="standard"))
    assert "\x1b[32mreproduced" in buffer.getvalue()


def test_a_wide_table_is_printed_in_blocks_of_columns():
    given = config()
    columns = given["columns"]["mini"]
    for index in range(8):
        columns[f"c{index}"] = {"label": f"Column {index}", "metric": "world/nll", "better": "lower"}
    text = printed(build_table(given, "mini", RUNS))
    assert max(map(len, text.splitlines())) <= 100
    assert all(f"Column {index}" in text for index in range(8))
    assert text.count("Pre-trained  ") >= 2  # the row labels stand beside every block
    assert "1.200 ± 0.248 (3)" in text  # no number was cut


def test_markup_in_a_label_is_printed_as_it_is():
    # Wide enough that the label is not wrapped.
    assert NASTY in printed(table(NASTY), width=200)


def test_a_pipe_that_takes_only_ascii_gets_ascii():
    text = printed(table("α-FLOW"), encoding="ascii")
    assert "52.0 +- 2.5 (3)" in text and "?-FLOW - Standard FT" in text


def test_a_pipe_gets_100_columns_by_default():
    imports = "from tests.runners.tables.shown_table import table; from runners.tables import render"
    code = f"{imports}; render.render_terminal(table())"
    environment = {key: value for key, value in os.environ.items() if key != "COLUMNS"}
    environment["PYTHONPATH"] = str(Path(__file__).parents[3])
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    lengths = [len(line) for line in done.stdout.splitlines()]
    assert 80 < max(lengths) <= 100


def test_nothing_run_yet_can_be_printed_and_written(tmp_path):
    empty = table(runs=[])
    assert "missing" in printed(empty)
    assert all(path.exists() for path in write_files(empty, tmp_path))


def test_no_form_ever_prints_nan():
    # Equal seeds, single seeds and zero differences, all at once.
    equal = [run(row, seed, 0.5, 1.0) for row in ("sft", "flow") for seed in (1, 2, 3)]
    shown = table(runs=[run("base", 0, 0.5, 1.0), *equal])
    for text in (printed(shown), to_markdown(shown), to_csv(shown), values_to_csv(shown), to_latex(shown)):
        assert not re.search(r"\b(nan|inf)\b", text, re.IGNORECASE)


# ---------------------------------------------------------------------------------------------------------------- files


def test_all_files_are_written_and_nothing_else(written):
    _, folder, paths = written
    names = sorted(str(path.relative_to(folder)) for path in paths)
    assert names == [
        "plots/general-against-nll-2.png",
        "plots/general-against-nll.png",
        "table.csv",
        "table.html",
        "table.md",
        "table.tex",
        "values.csv",
    ]
    assert sorted(p for p in folder.rglob("*") if p.is_file()) == sorted(paths)
    assert all(p.read_bytes().startswith(b"\x89PNG") for p in paths if p.suffix == ".png")


def test_the_same_table_gives_the_same_bytes(written, tmp_path):
    shown, _, paths = written
    assert [path.read_bytes() for path in paths] == [path.read_bytes() for path in write_files(shown, tmp_path)]


def test_a_write_that_fails_keeps_the_old_file_and_leaves_no_other(tmp_path, monkeypatch):
    write_files(build_table({**config(), "plots": []}, "mini", RUNS), tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}

    def refuse(source, target):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(OSError, match="No space left"):
        write_files(build_table({**config("Other"), "plots": []}, "mini", RUNS), tmp_path)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
