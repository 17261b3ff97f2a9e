"""What machines do to a training run (studies/faults.py, with 10 kills)."""

import subprocess
import sys

import pytest
from conftest import ROOT


@pytest.mark.slow
def test_nothing_is_lost_but_the_work_since_the_last_state():
    script = [sys.executable, ROOT / "tests" / "studies" / "faults.py", "--kills", "10"]
    subprocess.run(script, check=True, timeout=1800)
