"""The study of `python -m jobs selftest`: the shipped one, under a name of its own, on a target that the user names."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime
from pathlib import Path

from jobs.plan.study_file import SHIPPED


def study_text(target: Path) -> str:
    """The text of the study file; its name has the time, so that it is measured anew every time."""
    text = SHIPPED["selftest"].read_text(encoding="utf-8")
    for key, value in (("name", f"selftest-{datetime.now(UTC):%Y%m%dT%H%M%S}"), ("path", str(target))):
        before, _, after = re.split(rf"^({key} = .*)$", text, maxsplit=1, flags=re.MULTILINE)
        text = f"{before}{key} = {json.dumps(value, ensure_ascii=False)}{after}"
    return text
