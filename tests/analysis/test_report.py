"""The report as HTML: complete, correct, and unspoilt by whatever a log holds. Browsers: test_report_in_a_browser."""

from __future__ import annotations

import base64
import csv
import gzip
import io
import itertools
import re
from collections import Counter
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import pytest

from analysis.advice.assumptions import USUAL, Assumptions
from analysis.errors import ResultsError
from analysis.logs.load import load_results
from analysis.report import report
from support.studies import MakeStudy, StudyOnDisk

PageOf = Callable[[str], str]


class Page(HTMLParser):
    """Every element of a page with its attributes, and the text of each kind of element."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.texts: dict[str, list[str]] = {}
        self._open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note an element."""
        self.elements.append((tag, {name: value or "" for name, value in attrs}))
        self._open.append(tag)
        self.texts.setdefault(tag, [])

    def handle_endtag(self, tag: str) -> None:
        """Note an element's end."""
        while self._open and self._open.pop() != tag:
            pass

    def handle_data(self, data: str) -> None:
        """Note a text, in all elements that it is in."""
        for tag in set(self._open):
            self.texts[tag].append(data)

    def having(self, *tags: str) -> list[dict[str, str]]:
        """The attributes of all elements of these kinds."""
        return [attributes for tag, attributes in self.elements if tag in tags]

    def text(self, tag: str) -> str:
        """All text inside elements of that kind."""
        return " ".join(" ".join(self.texts.get(tag, [])).split())


def page_of(results: Path | str, assumptions: Assumptions = USUAL) -> str:
    """The report about these results."""
    return report.report(load_results(results), assumptions)


@pytest.mark.parametrize("which", ["plain", "hostile"])
def test_nothing_but_known_elements_and_local_links(which: str, three_methods_page: PageOf) -> None:
    """No element can run, fetch or restyle anything, whatever the logs hold."""
    page = Page(three_methods_page(which))
    allowed = {
        "html", "head", "meta", "title", "link", "style", "body", "header", "main", "section", "nav", "div", "h1", "h2",
        "h3", "p", "ul", "ol", "li", "a", "strong", "figure", "figcaption", "table", "caption", "thead", "tbody", "tr",
        "th", "td", "sup", "details", "summary", "dl", "dt", "dd",
        "svg", "g", "path", "defs", "clippath", "rect", "use", "text", "tspan", "pattern",
    }  # fmt: skip

    assert {tag for tag, _ in page.elements} <= allowed
    attributes = {name for _, names in page.elements for name in names}
    assert not {name for name in attributes if name.startswith("on") or name in {"src", "srcset", "action"}}
    for tag, names in page.elements:
        for name in ("href", "xlink:href"):
            if name in names and tag != "link":
                assert re.match(r"#|data:application/gzip;base64,", names[name]), names[name][:80]
    assert Counter(tag for tag, _ in page.elements)["style"] == 1
    assert "49" not in page.text("h1")


def test_hostile_texts_are_shown_as_they_are(three_methods_page: PageOf, hostile_texts: list[str]) -> None:
    """Escaped isn't lost: a reader sees what the log said."""
    page = Page(three_methods_page("hostile"))

    assert page.text("h1") == "Checkpoint study: " + hostile_texts[0] + hostile_texts[1]
    assert "{{7*7}}{% include '/etc/passwd' %}</style><style>*{display:none}" in page.text("h2")
    assert "javascript:alert(1)" in page.text("section")
    assert not set(page.text("body")) & {"\x1b", "\u202e"}


@pytest.mark.parametrize("which", ["plain", "hostile"])
def test_it_is_accessible(which: str, three_methods_page: PageOf) -> None:
    """A language, one h1, headings in order, words for every figure, captions and scopes for every table."""
    page = Page(three_methods_page(which))
    headings = [int(tag[1]) for tag, _ in page.elements if re.fullmatch("h[1-6]", tag)]

    assert page.having("html")[0]["lang"] == "en"
    assert headings.count(1) == 1
    assert headings[0] == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(headings))
    figures = page.having("svg")
    assert len(figures) == (10 if which == "plain" else 30)  # hostile jobs differ in everything: three settings
    assert all(each["role"] == "img" and len(each["aria-label"]) > 40 for each in figures)
    assert all(each["scope"] in {"col", "row"} for each in page.having("th"))
    kinds = Counter(tag for tag, _ in page.elements)
    assert kinds["table"] == kinds["caption"] >= 8
    assert len([each for each in page.having("figure") if each["class"] == "plot"]) == len(figures)
    assert kinds["figcaption"] >= len(figures)


@pytest.mark.parametrize("which", ["plain", "hostile"])
def test_ids_are_unique_and_links_lead_somewhere(which: str, three_methods_page: PageOf) -> None:
    """In the page and inside its figures."""
    page = Page(three_methods_page(which))
    ids = Counter(names["id"] for _, names in page.elements if "id" in names)
    wanted = [names[n][1:] for _, names in page.elements for n in ("href", "xlink:href") if names.get(n, "")[:1] == "#"]
    wanted += [names["aria-labelledby"] for _, names in page.elements if "aria-labelledby" in names]

    assert {key: count for key, count in ids.items() if count > 1} == {}
    assert len(wanted) > 20
    assert set(wanted) <= ids.keys()


def test_the_answer_comes_early(three_methods_page: PageOf) -> None:
    """In plain words, with interval and cost, after what the targets are; torch_save is fastest by construction."""
    text = three_methods_page("plain")
    body = text[text.index("<body>") :]

    assert body.index("On disk, 1 node × 1 task, use torch_save.") < body.index("Summary: tiny")
    assert (
        body.index("Storage: tiny") < body.index('id="answer"') < body.index('id="place-1"') < body.index('id="method"')
    )
    assert body.index('id="method"') < body.index('id="warnings"') < body.index('id="provenance"')
    assert body.index('id="provenance"') < body.index('id="samples"')
    assert "With a failure every 8 h" in body


def test_assumptions_change_the_answer(three_methods: StudyOnDisk) -> None:
    """What the reader assumes stands in the page."""
    text = page_of(three_methods.root, Assumptions(mtbf_hours=2, step_time_s=10))

    assert "With a failure every 2 h" in text
    assert "steps" in Page(text).text("section")
    assert "one every 2 h of the whole job" in text


def test_the_raw_samples_are_inside(three_methods: StudyOnDisk, three_methods_page: PageOf) -> None:
    """Every sample, also warm-ups and invalid ones, as the log has it: one file survives being sent."""
    page = Page(three_methods_page("plain"))
    [uri] = [each["href"] for each in page.having("a") if each.get("download") == "samples.csv.gz"]
    text = gzip.decompress(base64.b64decode(uri.partition("base64,")[2])).decode()
    rows = list(csv.DictReader(io.StringIO(text)))
    samples = load_results(three_methods.root).samples

    assert len(rows) == len(samples) == 78
    assert [float(row["duration_s"]) for row in rows] == samples["duration_s"].tolist()
    assert {row["warmup"] for row in rows} == {"True", "False"}


def test_samples_that_are_too_many_are_named(three_methods: StudyOnDisk, monkeypatch: pytest.MonkeyPatch) -> None:
    """The page says what isn't in it and how to get it, instead of becoming too large to send."""
    monkeypatch.setattr(report, "MOST_EMBEDDED_BYTES", 10)
    page = Page(page_of(three_methods.root))

    assert not [each for each in page.having("a") if "download" in each]
    assert "`python -m analysis merge` puts all logs in one file." in page.text("section")


def test_warnings_name_what_is_missing(make_study: MakeStudy) -> None:
    """A job that never reported, a failed one and an invalid sample are in the page, with their reasons."""
    study = make_study(rounds=1)
    study.log("torch_save", save=[2, 3, 4], cold=[1, 1, 1], invalid={(1, "cold"): "loaded state differs: w[3]"})
    study.log("tensorstore_basic", status="failed", error="OSError: No space left", state={})
    page = Page(page_of(study.root))

    warnings = page.text("li")
    assert "r01-tensorstore_basic-disk-1x1: failed: OSError: No space left" in warnings
    assert "r01-tensorstore_t5x-disk-1x1: no log" in warnings
    assert "loaded state differs: w[3]" in warnings


def test_nothing_measured_is_a_page_too(make_study: MakeStudy) -> None:
    """All jobs missing: the report says so, and advises nothing."""
    page = Page(page_of(make_study().root))

    assert "no strategy has a valid save and a valid load, so there is no advice" in page.text("p")
    assert page.having("svg") == []


def test_the_same_results_give_the_same_page(three_methods: StudyOnDisk, three_methods_page: PageOf) -> None:
    """Without dates, paths or random ids, two reports can be compared."""
    assert page_of(three_methods.root) == three_methods_page("plain")


def test_a_page_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    """A directory is made; an older page is replaced; nothing else is left; a failure is one message."""
    path = tmp_path / "report" / "report.html"
    report.write("old", path)
    report.write("new", path)

    assert path.read_text() == "new"
    assert list(path.parent.iterdir()) == [path]
    with pytest.raises(ResultsError, match="can't write"):
        report.write("new", path / "below")
