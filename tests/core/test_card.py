"""The benchmark of a card in its small form on a CPU: what it reports, and what of that holds on every device."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

CARD = Path(__file__).parents[2] / "benchmarks" / "card.py"


def test_the_report_has_every_model_and_a_lift_never_waits_for_its_device(tmp_path):
    """Half precision is as far off as its digits say: 11 bits and 8 bits, over an error that a few layers add up."""
    command = [sys.executable, str(CARD), "--device", "cpu", "--out", "card.json", "--parts", "half_precision", "waits"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads((tmp_path / "card.json").read_text(encoding="utf-8"))
    for row in report["half_precision"]:
        assert row["finite"]
        digits = {"float16": 2**-11, "bfloat16": 2**-8}[row["precision"]]
        assert 0.1 * digits < row["error"] < 10 * digits, row
        assert f"| {row['model']} | {row['precision']} |" in done.stdout
    assert {row["model"] for row in report["waits"]} == {row["model"] for row in report["half_precision"]}
    for row in report["waits"]:
        assert row.pop("model") and set(row.values()) == {0}, row
