"""What a start under ZeRO does not do."""

import subprocess
import sys

from tests.runs import PROJECT, environment

SCRIPT = """
import sys
from launch.strategies.zero import import_muon
import_muon()
from deepspeed.runtime import compiler
from deepspeed.runtime.zero.muon import muon_optimizer
assert hasattr(muon_optimizer, "MuonWithAuxAdam") and compiler.compile.__module__ == compiler.__name__
print("torch._inductor.compile_fx" in sys.modules)
"""


def test_muon_is_imported_without_the_compiler():
    words = [sys.executable, "-c", SCRIPT]
    done = subprocess.run(words, cwd=PROJECT, env=environment(), capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (0, "False\n"), done.stderr
