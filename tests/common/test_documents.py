"""Documents for contributors name files and keys that exist."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
KEYS = set(re.findall(r"^\| `([^`]+)`", (ROOT / "config/README.md").read_text(), re.MULTILINE))


@pytest.mark.parametrize("document", ["CONTRIBUTING.md", "docs/glossary.md"])
def test_files_and_keys_that_are_named_exist(document):
    named = re.findall(r"`([^`\s]+)`", (ROOT / document).read_text())
    files = [
        name for name in named if re.fullmatch(r"[\w./-]+(/|\.py|\.toml|\.md|\.txt)", name) and "/" in name.strip("/")
    ]
    files = [name for name in files if not name.startswith("runs/")]  # of results
    assert files
    assert not [name for name in files if not any((base / name).exists() for base in (ROOT, ROOT / "src/effopd"))]
    sections = {key.partition(".")[0] for key in KEYS}
    keys = [name.removesuffix(".*") for name in named if name.partition(".")[0] in sections and "." in name]
    keys = [key for key in keys if not re.search(r"[/(]|\.(py|yaml|md|toml)$", key)]
    assert not [key for key in keys if not any(known == key or known.startswith(f"{key}.") for known in KEYS)]
