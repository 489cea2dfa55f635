"""A test's process that hangs ends, with what it printed and where it stood."""

import subprocess
import sys

import pytest

from .processes import finish

WAITING = "time.sleep(600)"
SILENT = f"import time; print('begun', flush=True); {WAITING}"
PARENT = f"import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', sys.argv[1]]); {WAITING}"


def test_a_hung_process_and_its_child_say_where_they_stand():
    command = [sys.executable, "-c", PARENT, SILENT]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    with pytest.raises(pytest.fail.Exception, match=r"(?s)10 seconds.*begun.*Current thread") as failure:
        finish(process, seconds=10)
    assert process.returncode is not None
    assert str(failure.value).count('File "<string>", line 1 in <module>') == 2
