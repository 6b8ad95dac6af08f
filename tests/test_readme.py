"""The README is true: its code runs, its table is made from the code, its files exist."""

import pathlib
import re
import subprocess
import sys

ROOT = pathlib.Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def test_the_first_code_comes_by_line_20():
    assert README[: README.index("```python")].count("\n") < 20


def test_the_code_runs_as_it_stands():
    code = "\n".join(re.findall(r"```python\n(.*?)```", README, re.DOTALL))
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_the_table_is_made_from_the_code():
    written = re.search(r"<!-- mechanisms -->\n(.*?)\n<!-- /mechanisms -->", README, re.DOTALL)
    script = [sys.executable, str(ROOT / "examples" / "mechanisms.py")]
    made = subprocess.run(script, capture_output=True, text=True, check=True).stdout
    assert written.group(1) == made.strip(), "run python examples/mechanisms.py"


def test_the_capabilities_are_asked_of_the_library():
    written = re.search(r"<!-- capabilities -->\n(.*?)\n?<!-- /capabilities -->", README, re.DOTALL)
    script = [sys.executable, str(ROOT / "examples" / "capabilities.py")]
    made = subprocess.run(script, capture_output=True, text=True, check=True).stdout
    assert written.group(1) == made.strip(), "run python examples/capabilities.py"


def test_linked_files_exist():
    for link in re.findall(r"\]\(([^)]+)\)", README):
        assert link.startswith("https://arxiv.org") or (ROOT / link).exists(), link


def test_the_commands_are_those_that_ci_runs():
    ci = (ROOT / ".ci" / "run").read_text()
    for extra in re.findall(r'pip install "(\.\[\w+\])"', README):
        assert extra in ci
