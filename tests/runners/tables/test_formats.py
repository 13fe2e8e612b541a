"""Markdown, CSV, LaTeX and the tracker's rows; nothing in a label can break one of them."""

import csv
import html
import io
import re

import pytest

from runners.tables.formats import as_rows, to_csv, to_latex, to_markdown, values_to_csv
from tests.runners.tables.shown_table import NASTY, table


def read_csv(text):
    return list(csv.DictReader(io.StringIO(text, newline="")))


def test_the_csv_reads_back_to_the_cells():
    shown = table(NASTY)
    cells = [(row, cell) for row in (*shown.rows, *shown.relations) for cell in row.cells]
    records = read_csv(to_csv(shown))
    assert len(records) == len(cells)
    for record, (row, cell) in zip(records, cells, strict=True):
        assert (record["row"], record["row_label"], record["column"]) == (row.key, row.label, cell.column)
        assert (float(record["mean"]) if record["mean"] else None) == cell.mean
        assert (float(record["half_width"]) if record["half_width"] else None) == cell.half_width
        assert (int(record["n"]), int(record["expected"])) == (cell.n, cell.expected)
        assert (record["verdict"] or None) == cell.verdict
        assert record["source"] == (cell.published.source if cell.published else "")
        assert (float(record["published"]) if record["published"] else None) == (
            cell.published.value if cell.published else None
        )
    values = [
        (r["kind"], r["row"], r["column"], int(r["seed"]), float(r["value"])) for r in read_csv(values_to_csv(shown))
    ]
    kinds = ["row"] * len(shown.rows) + ["relation"] * len(shown.relations)
    assert values == [
        (kind, row.key, cell.column, seed, value)
        for kind, row in zip(kinds, (*shown.rows, *shown.relations), strict=True)
        for cell in row.cells
        for seed, value in cell.values
    ]


def test_markdown_has_one_line_per_row_and_escapes_labels():
    text = to_markdown(table(NASTY))
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert len(lines) == 2 + 3 + 2  # head, rule, rows, relations
    for line in lines:
        assert len(re.findall(r"(?<!\\)\|", line)) == 1 + 1 + 2  # label and two shown columns
    assert r"A\<b\>\&" in text and r"\|\_50%\_" in text and "<b>" not in text
    assert "52.0 ± 2.5 (3)<br>paper 52.0<br>*reproduced*" in text


def test_markdown_renders_to_the_label(tmp_path):
    from markdown_it import MarkdownIt

    rendered = MarkdownIt("commonmark").enable("table").render(to_markdown(table(NASTY)))
    cells = re.findall(r"<td[^>]*>(.*?)</td>", rendered)
    assert html.unescape(cells[6]) == NASTY


def test_latex_escapes_labels_and_balances_its_braces():
    text = to_latex(table(NASTY))
    assert r"\textless{}b\textgreater{}\&\textquotedbl{}x\textquotedbl{}\textbar{}\_50\%\_" in text
    assert r"\$\textbackslash{}alpha\$ {[}red]\textasciitilde{}\textasciicircum{}\#\{1\}" in text
    assert r"52.0 $\pm$ 2.5 (3)" in text and r"\toprule" in text and r"\bottomrule" in text
    body = re.sub(r"\\[{}]", "", text)
    assert body.count("{") == body.count("}")
    rows = [line for line in text.splitlines() if line.endswith(r"\\")]
    assert {len(re.findall(r"(?<!\\)&", line)) for line in rows} == {2}
    assert not re.search(r"(?<!\\)[%#]", text.split("\n", 1)[1])  # but for the first line, a comment
    assert to_latex(table("α ≥ Δ")).count(r"$\alpha$ $\geq$ $\Delta$") >= 1


def test_as_rows_are_plain_values_of_the_shown_columns():
    columns, rows = as_rows(table())
    assert all(len(row) == len(columns) for row in rows)
    assert all(value is None or type(value) in (str, int, float) for row in rows for value in row)
    by_place = {(row[0], row[1]): dict(zip(columns, row, strict=True)) for row in rows}
    found = by_place["Standard FT", "General_skills"]
    assert found["mean"] == pytest.approx(52.0) and found["half_width"] == pytest.approx(2.48414, abs=1e-5)
    assert (found["seeds"], found["published"], found["verdict"]) == (3, 52.0, "reproduced")
    assert by_place["Pre-trained", "NLL"]["verdict"] == "no published number"
    assert ("Pre-trained", "Part") not in by_place


def test_wandb_takes_the_rows():
    wandb = pytest.importorskip("wandb")
    columns, rows = as_rows(table())
    assert len(wandb.Table(columns=columns, data=rows).data) == len(rows)
