"""The studies of `python -m jobs selftest`: shipped ones, under names of their own, on a target that the user names."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime
from pathlib import Path

from jobs.plan.study_file import SHIPPED

STUDIES = ("selftest", "selftest-loop", "selftest-cores")
"""The shipped studies: saves and loads, a training loop that waits, and one that computes."""


def study_text(study: str, target: Path) -> str:
    """The text of a study's file; its name has the time, so that it is measured anew every time."""
    text = SHIPPED[study].read_text(encoding="utf-8")
    for key, value in (("name", f"{study}-{datetime.now(UTC):%Y%m%dT%H%M%S}"), ("path", str(target))):
        before, _, after = re.split(rf"^({key} = .*)$", text, maxsplit=1, flags=re.MULTILINE)
        text = f"{before}{key} = {json.dumps(value, ensure_ascii=False)}{after}"
    return text
