"""Training, evaluation and fine-tuning on a GPU without one, by fake CUDA tensors (fakecuda/)."""

import os
import shutil
import subprocess
import sys

import pytest
import torch
from conftest import ROOT


@pytest.fixture(scope="module")
def python():
    """python(*arguments) -> a finished process in which fakecuda can be imported; skips where that does not work."""
    if not shutil.which("g++") or torch.version.cuda is None:
        pytest.skip("needs g++ and a PyTorch built for CUDA, which need no GPU")

    def run(*arguments):
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT / "tests"), str(ROOT)])}
        command = [sys.executable, *map(str, arguments)]
        return subprocess.run(command, cwd=ROOT, env=environment, text=True, capture_output=True)

    tried = run("-m", "fakecuda.device")
    if tried.returncode:
        pytest.skip(f"fake CUDA tensors do not work with PyTorch {torch.__version__}: {tried.stderr.splitlines()[-1:]}")
    return run


def run_checks(python, kind):
    plugins = ["-p", "fakecuda.device", "-p", "no:cacheprovider"]  # the first before conftest.py, which imports torch
    finished = python("-m", "pytest", *plugins, "-q", "--tb=short", "-m", kind, ROOT / "tests/fakecuda/checks.py")
    assert finished.returncode == 0, finished.stdout + finished.stderr


def test_the_gpu_path(python):
    run_checks(python, "not slow")


@pytest.mark.slow
def test_the_compiled_gpu_path(python):
    run_checks(python, "slow")
