"""The HTML page stands alone and shows everything."""

import html.parser
import re

import pytest

from runners.tables.page import to_html
from runners.tables.plots import draw_plots
from tests.runners.tables.shown_table import NASTY, table


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
def page():
    shown = table(NASTY)
    return to_html(shown, draw_plots(shown))


def test_the_page_refers_to_nothing_outside_itself(page):
    parsed = Page(page)
    for tag, target in parsed.references:
        assert target.startswith("#") or target == "data:," or (tag, target[:18]) == ("a", "https://arxiv.org/"), target
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
