"""README and docs: links lead somewhere, commands name files and flags that exist."""

import re
import shlex
import subprocess
import sys
from functools import cache

import pytest
from conftest import ROOT

PAGES = [*sorted((ROOT / "docs").glob("*.md")), ROOT / "docs/use.ipynb"]
PAGES += [ROOT / folder / "README.md" for folder in ("", "lists", "exps")]


def anchors(page):
    """GitHub's anchors of a page's headings."""
    headings = re.findall(r"^#+ (.+)$", re.sub(r"```.*?```", "", page.read_text(), flags=re.S), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@cache
def help_of(command):
    run = subprocess.run([sys.executable, *command, "-h"], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return run.stdout


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links(page):
    for link in re.findall(r"\]\((?!https?:)([^)]+)\)", page.read_text()):
        file, _, anchor = link.partition("#")
        target = (page.parent / file).resolve() if file else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands(page):
    blocks = re.findall(r"```bash\n(.*?)```", page.read_text(), re.S)
    lines = re.sub(r"\\\n\s*", "", "\n".join(blocks)).splitlines()
    for line in lines:
        words = shlex.split(line, comments=True)
        for start, word in enumerate(words):
            if word.endswith(".py") or (word == "-m" and words[start + 1].startswith("evaluation.")):
                command = (word,) if word.endswith(".py") else (word, words[start + 1])
                flags = {each.split("=")[0] for each in words[start:] if each.startswith("--")}
                if word == "prepareData.py":  # a page of help for each action
                    command = (word, next(each for each in words[start:] if each.startswith("--")))
                assert all(flag in help_of(command) for flag in flags - set(command)), line
                break


def test_the_readme_is_a_page():
    assert (ROOT / "README.md").stat().st_size <= 12_000
