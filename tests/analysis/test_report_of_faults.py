"""The report's section on faults: beside timing logs, without them, and unspoilt by what a file holds."""

from __future__ import annotations

import re
from pathlib import Path

from analysis.advice.assumptions import USUAL
from analysis.logs.load import load_results
from analysis.report import report
from jobs.faults.outcomes import ALONE, POWER_CUT, Cell
from support.command_lines import run_module
from support.fault_logs import fault_log, write_fault_log
from support.studies import StudyOnDisk

SECTION = '<section id="faults" aria-labelledby="faults-title">'


def test_faults_stand_beside_timing_logs(three_methods: StudyOnDisk) -> None:
    """After the sections of targets and before the method, and in the contents; all else stays as it was."""
    results = load_results(three_methods.root)
    page = report.report(results, USUAL, faults=[fault_log()])
    section = page.partition(SECTION)[2].partition("</section>")[0]

    assert page.index('id="place-1"') < page.index(SECTION) < page.index('id="method"')
    assert '<li><a href="#faults">Faults</a></li>' in page
    assert '<td class="text silent">silent 3 of 412</td>' in section
    assert "--method torch_save --use alone --fault power-cut</code>" in section
    without = page.replace(f"{SECTION}{section}</section>\n", "").replace('<li><a href="#faults">Faults</a></li>\n', "")
    assert without.replace("durable, tiny", "tiny") == report.report(results, USUAL)


def test_a_study_without_timing_logs_has_a_page_of_faults_alone(tmp_path: Path) -> None:
    """It is written into the study's directory; it has no other section, and all its links lead somewhere."""
    write_fault_log(fault_log(), tmp_path)

    ended = run_module("analysis", "report", str(tmp_path))
    page = (tmp_path / "report" / "report.html").read_text()

    assert (ended.returncode, ended.stdout, ended.stderr) == (0, f"{tmp_path}/report/report.html\n", "")
    assert re.findall(r'<section id="(.*?)"', page) == ["faults"]
    assert "<h1>Checkpoint study: durable</h1>\n<p>No timing logs: this page is about faults alone.</p>" in page
    ids = re.findall(r' id="(.*?)"', page)
    assert len(ids) == len(set(ids))
    assert {link for link in re.findall(r'href="#(.*?)"', page) if link not in ids} == set()
    assert "84 of 100" in page


def test_the_command_adds_faults_to_the_report_of_a_study(three_methods: StudyOnDisk) -> None:
    """The file beside the logs is enough."""
    write_fault_log(fault_log(), three_methods.root)

    run_module("analysis", "report", str(three_methods.root))

    page = (three_methods.root / "report" / "report.html").read_text()
    assert SECTION in page
    assert 'id="answer"' in page


def test_two_studies_have_a_table_each() -> None:
    """Their footnotes' anchors differ."""
    page = report.report(None, USUAL, faults=[fault_log(study="b"), fault_log(study="a")])
    ids = re.findall(r' id="(.*?)"', page)

    assert len(ids) == len(set(ids))
    assert {"faults-1", "faults-2", "faults-1-1", "faults-2-1"} <= set(ids)
    assert "<h1>Checkpoint study: a, b</h1>" in page


def test_hostile_texts_are_escaped(hostile_texts: list[str]) -> None:
    """In names, cases, reasons and commands."""
    text = " ".join(hostile_texts)
    cells = (Cell(text, ALONE, POWER_CUT, 1, 2, 3, text), Cell(text, text, POWER_CUT, skipped=text))
    log = fault_log(*cells, study=text, target=text, filesystem=text, command=text, versions={text: text})
    body = report.report(None, USUAL, faults=[log]).partition("</head>")[2]

    assert not re.search(r"<(?:script|img|style|svg|b)\b", body)
    assert body.count("&lt;script&gt;alert(1)&lt;/script&gt;") > 8
    assert not set(body) & {"\x1b", "\u202e", "\u2028"}
