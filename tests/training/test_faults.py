"""What machines and people do to a training run (studies/faults.py, with 10 kills)."""

import subprocess
import sys

import pytest
from conftest import ROOT

FAULTS = ["kills", "torn_states", "two_runs", "full_disk", "spoilt_data", "bad_steps"]


@pytest.fixture(scope="module")
def rows():
    """{fault: its row of the table, (how often, what happened, ...)}."""
    script = [sys.executable, ROOT / "tests" / "studies" / "faults.py", "--kills", "10"]
    found = subprocess.run(script, capture_output=True, text=True, timeout=1800)
    print(found.stdout)
    rows = [line.split(" | ") for line in found.stdout.splitlines() if " | " in line]
    rows = {row[0]: row[2:] for row in rows}
    assert rows.keys() == set(FAULTS), found.stdout + found.stderr
    return rows


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS)
def test_nothing_is_lost_but_the_work_since_the_last_state(rows, fault):
    often, happened = rows[fault][:2]
    if happened.startswith("not tried"):
        pytest.skip(happened)
    assert often != "FAILED", happened
    assert int(often) >= (10 if fault == "kills" else 1)
