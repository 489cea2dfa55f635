"""The notebook's code cells, run one after another in a fresh interpreter (no Jupyter is needed for that)."""

import json
import os
import subprocess
import sys
from pathlib import Path

from run_folders import write_demo

NOTEBOOK = Path(__file__).resolve().parents[2] / "notebooks" / "01_look_at_a_run.ipynb"


def code_cells() -> list[dict]:
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    return [cell for cell in cells if cell["cell_type"] == "code"]


def test_the_notebook_runs_from_top_to_bottom_on_a_run(tmp_path):
    folder = write_demo(tmp_path)
    code = "\n".join("".join(cell["source"]) for cell in code_cells())
    environment = {**os.environ, "NANOLIT_HOME": str(tmp_path), "MPLBACKEND": "Agg"}
    command = [sys.executable, "-W", "error", "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "base: median 1,024 tokens/s" in done.stdout
    assert done.stdout.endswith(f"{folder / 'report.md'}\n")


def test_the_notebook_holds_no_outputs():
    assert [(cell["outputs"], cell["execution_count"]) for cell in code_cells()] == [([], None)] * len(
        code_cells()
    )
