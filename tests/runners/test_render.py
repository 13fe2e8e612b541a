"""What a table looks like in each form, and that nothing in a label can break one of them."""

import csv
import html.parser
import io
import os
import re
import subprocess
import sys

import pytest
from rich.console import Console

from runners.render import (
    as_rows,
    render_terminal,
    to_csv,
    to_latex,
    to_markdown,
    values_to_csv,
    write_files,
)
from runners.table import CellRun, build_table

NASTY = 'A<b>&"x"|_50%_ $\\alpha$ [red]~^#{1}'


def config(label="FLOW", published=(), scale_setting="paper"):
    return {
        "name": "flow/language",
        "title": "Fine-tuning & forgetting",
        "paper": {
            "title": "Upweighting",
            "authors": "Sanyal et al.",
            "arxiv": "2502.02797",
            "table": "Table 2",
        },
        "scales": {"mini": {"setting": scale_setting, "note": "a <miniature>", "seeds": [1, 2, 3]}},
        "rows": {
            "base": {"label": "Pre-trained", "seeds": [0]},
            "sft": {"label": "Standard FT"},
            "flow": {"label": label},
        },
        "columns": {
            "mini": {
                "general": {
                    "label": "General_skills",
                    "metric": "world/acc,none",
                    "better": "higher",
                    "percent": True,
                },
                "nll": {"label": "NLL", "metric": "world/nll", "better": "lower"},
                "part": {"label": "Part", "metric": "world/nll", "better": "lower", "hidden": True},
            }
        },
        "published": list(published),
        "claims": [
            {"text": "FLOW keeps more", "row": "flow", "beats": "sft", "column": "general"},
            {"text": "FLOW learns as much", "row": "flow", "beats": "sft", "column": "nll", "by": 0.5},
            {"text": "FLOW beats the base", "row": "flow", "beats": "base", "column": "nll"},
        ],
        "plots": [{"x": "nll", "y": "general", "title": "Trade_off $x$ <i>"}, {"x": "nll", "y": "general"}],
        "baseline": "sft",
    }


def run(row, seed, general, nll, status="done", reason=""):
    metrics = {"world": {"acc,none": general, "nll": nll}} if status == "done" else None
    return CellRun(row, seed, status, metrics, f"outputs/{row}-{seed}", reason)


RUNS = [
    run("base", 0, 0.9, 3.0),
    *(run("sft", seed, 0.50 + seed / 100, 1.0 + seed / 10) for seed in (1, 2, 3)),
    run("flow", 1, 0.71, 1.2),
    run("flow", 2, 0.70, 1.25),
    run("flow", 3, 0, 0, "failed", "loss is not finite"),
]
PUBLISHED = [
    {
        "row": "sft",
        "column": "general",
        "value": 52.0,
        "scale": "mini",
        "source": "Table 2, p. 7",
        "tolerance": 9,
    },
    {"row": "flow", "column": "general", "value": 60.5, "scale": "full"},
    {"row": "flow", "minus": "sft", "column": "general", "value": 5.42, "scale": "full"},
    {"row": "flow", "over": "sft", "column": "general", "value": 1.3, "scale": "full"},
    {"row": "flow", "column": "nll", "value": 1.1, "scale": "mini"},
    {"row": "sft", "column": "nll", "value": 1.2, "scale": "mini"},
]


def table(label="FLOW", runs=RUNS, published=PUBLISHED):
    return build_table(config(label, published), "mini", runs)


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


# --------------------------------------------------------------------------------------------------- terminal


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
    code = (
        "from test_render import table; from runners.render import render_terminal; render_terminal(table())"
    )
    environment = {key: value for key, value in os.environ.items() if key != "COLUMNS"}
    environment["PYTHONPATH"] = os.pathsep.join([os.path.dirname(__file__), os.getcwd()])
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


# ------------------------------------------------------------------------------------------------------ files


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
    assert [path.read_bytes() for path in paths] == [
        path.read_bytes() for path in write_files(shown, tmp_path)
    ]


def test_a_write_that_fails_keeps_the_old_file_and_leaves_no_other(tmp_path, monkeypatch):
    write_files(build_table({**config(), "plots": []}, "mini", RUNS), tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}

    def refuse(source, target):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(OSError, match="No space left"):
        write_files(build_table({**config("Other"), "plots": []}, "mini", RUNS), tmp_path)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def read_csv(path):
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_the_csv_reads_back_to_the_cells(written):
    shown, folder, _ = written
    cells = [(row, cell) for row in (*shown.rows, *shown.relations) for cell in row.cells]
    records = read_csv(folder / "table.csv")
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
        (r["kind"], r["row"], r["column"], int(r["seed"]), float(r["value"]))
        for r in read_csv(folder / "values.csv")
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


class Page(html.parser.HTMLParser):
    """The attributes that load or lead somewhere, the tags and the text of a page."""

    def __init__(self, text):
        super().__init__()
        self.references, self.tags, self.texts, self.ids = [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        for name, value in attributes:
            if name in ("src", "href", "xlink:href", "srcset", "data", "action", "poster"):
                self.references.append((tag, value))
            if name == "id":
                self.ids.append(value)

    def handle_data(self, data):
        self.texts.append(data)


@pytest.fixture(scope="module")
def page(written):
    return (written[1] / "table.html").read_text(encoding="utf-8")


def test_the_page_refers_to_nothing_outside_itself(page):
    parsed = Page(page)
    for tag, target in parsed.references:
        assert (
            target.startswith("#") or target == "data:," or (tag, target[:18]) == ("a", "https://arxiv.org/")
        ), target
    assert "script" not in parsed.tags and "img" not in parsed.tags and "@import" not in page
    assert all(target.startswith("#") for target in re.findall(r"url\(([^)]*)\)", page))
    assert "default-src 'none'" in page


def test_the_ids_of_a_page_are_unique_and_every_reference_inside_it_has_its_target(page):
    parsed = Page(page)
    assert len(parsed.ids) == len(set(parsed.ids)) and parsed.tags.count("svg") == 2
    inner = [t[1:] for _, t in parsed.references if t.startswith("#")] + re.findall(r"url\(#([^)]*)\)", page)
    assert inner and set(inner) <= set(parsed.ids)


def test_the_page_escapes_labels_and_holds_everything(page):
    parsed = Page(page)
    assert "b" not in parsed.tags and "i" not in parsed.tags and "miniature" not in parsed.tags
    shown = " ".join(parsed.texts)
    assert NASTY in shown
    for wanted in (
        "52.0 ± 2.5 (3)",
        "reproduced",
        "paper +5.42 (full)",
        "FLOW keeps more",
        "loss is not finite",
    ):
        assert wanted in shown
    for wanted in ("Sanyal et al.", "Table 2", "outputs/flow-3", "world/acc,none", "General_skills"):
        assert wanted in shown
    assert "experiment=flow/language scale=mini job=table" in shown
    assert "prefers-color-scheme: dark" in page and 'name="viewport"' in page


def test_plot_labels_are_not_read_as_mathematics_or_hidden(recwarn):
    from runners.render import _figures

    given = config("_FLOW $x_", PUBLISHED)
    given["columns"]["mini"]["nll"]["label"] = "cost in $ per $ _{"
    figures = _figures(build_table(given, "mini", RUNS))
    labels = [text.get_text() for text in figures[0][2].legends[0].get_texts()]
    assert labels == ["Pre-trained", "Standard FT", "_FLOW $x_ (2 of 3 seeds)", "hollow: published"]
    assert figures[0][2].axes[0].get_xlabel() == "cost in $ per $ _{ (↓)"
    for _, _, figure in figures:
        figure.savefig(io.BytesIO(), format="png")
    assert not [
        w for w in recwarn if "glyph" in str(w.message).lower() or "underscore" in str(w.message).lower()
    ]


def test_published_points_are_hollow_and_only_those_of_this_scale():
    from runners.render import _figures

    figures = _figures(table())
    hollow = [line for line in figures[0][2].axes[0].lines if line.get_markerfacecolor() == "none"]
    assert [(list(line.get_xdata()), list(line.get_ydata())) for line in hollow] == [([1.2], [52.0])]
    assert figures[0][2].legends[0].get_texts()[-1].get_text() == "hollow: published"


# -------------------------------------------------------------------------------------------------------- W&B


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
