"""The documentation is true: its code runs, its tables are made from the code, its files exist."""

import os
import pathlib
import re
import subprocess
import sys

import pytest

from tests.runs import long

ROOT = pathlib.Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])
MADE = {"mechanisms.md": "mechanisms.py", "implementations.md": "capabilities.py"}

# Of a compiled program in the cache of pytest, which another worker is writing.
CACHE = "default::UserWarning:jax._src.compiler"

# Each page runs in a namespace of its own. Lines outside of its code are blank, so that a traceback
# names the line of the page.
RUN_PAGES = r"""
import pathlib, re, sys
for page in sys.argv[1:]:
    first, *rest = re.split(r"^```(\w*)$", pathlib.Path(page).read_text(), flags=re.M)
    blocks = zip(["", *rest[::2]], [first, *rest[1::2]])
    lines = [text if kind == "python" else re.sub(".", "", text) for kind, text in blocks]
    exec(compile("".join(lines), page, "exec"), {"__name__": page})
"""


def test_the_readme_is_short_and_the_first_code_comes_by_line_20():
    assert README.count("\n") <= 180
    assert README[: README.index("```python")].count("\n") < 20


def test_the_code_of_every_page_runs_as_it_stands():
    done = subprocess.run(
        [sys.executable, "-W", "error", "-W", CACHE, "-c", RUN_PAGES, *map(str, PAGES)],
        capture_output=True,
        text=True,
        env=os.environ | {"MPLBACKEND": "Agg"},
    )
    assert done.returncode == 0, done.stderr


@long
@pytest.mark.parametrize("page", MADE)
def test_the_page_is_what_its_command_prints(page):
    script = [sys.executable, str(ROOT / "examples" / MADE[page])]
    made = subprocess.run(script, capture_output=True, text=True, check=True).stdout
    command = f"python examples/{MADE[page]} > docs/{page}"
    assert command in made
    assert (ROOT / "docs" / page).read_text() == made, f"run {command}"


def test_the_readme_counts_the_mechanisms():
    rows = (ROOT / "docs" / "mechanisms.md").read_text().count("\n| `")
    assert f"**{rows} vision mechanisms**" in README


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_linked_files_exist(page):
    for link in re.findall(r"\]\(([^)]+)\)", page.read_text()):
        assert link.startswith("https://") or (page.parent / link).exists(), link


def test_files_that_pages_name_exist():
    files = re.compile(r"\b((?:examples|tests|flax_attn|docs)/[\w/]+\.\w+)")
    for page in PAGES:
        for path in files.findall(page.read_text()):
            assert (ROOT / path).exists() or "my_" in path, f"{page.name}: {path}"


def test_the_commands_are_those_that_ci_runs():
    ci = (ROOT / ".ci" / "run").read_text()
    for extra in re.findall(r'pip install "(\.\[\w+\])"', README):
        assert extra in ci
