"""The guides name tests that exist."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_tests_named_in_the_guides_exist():
    missing, count = [], 0
    for guide in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]:
        for path, name in re.findall(
            r"`([\w/]*test_\w+\.py)(?:::(\w+))?`", guide.read_text(encoding="utf-8")
        ):
            file = ROOT / "tests" / path.removeprefix("tests/")
            count += 1
            if not file.is_file() or (name and f"def {name}(" not in file.read_text("utf-8")):
                missing.append(f"{guide.name}: {path}::{name}")
    assert not missing and count > 50
