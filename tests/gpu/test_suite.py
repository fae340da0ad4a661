"""The suite of an accelerator: run where there is one, and silent in a sentence where there is none."""

import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch

SUITE = Path(__file__).with_name("suite.py")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_a_device_it_says_so_and_checks_nothing(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [str(SUITE)])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(SUITE), run_name="__main__")
    assert ended.value.code == 0
    assert "No CUDA device" in capsys.readouterr().out


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device is here")
def test_it_passes():
    done = subprocess.run([sys.executable, SUITE], capture_output=True, text=True, timeout=480)
    assert done.returncode == 0, done.stdout + done.stderr
