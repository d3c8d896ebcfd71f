"""Hostile files end in a sentence, quickly, in little memory, and run no code: a short run of tools/fuzz.py."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

FUZZ = Path(__file__).parents[2] / "tools" / "fuzz.py"


def test_every_mutated_file_ends_in_a_sentence_or_in_a_whole_model(tmp_path):
    """In a process of its own, whose memory is limited."""
    command = [sys.executable, str(FUZZ), "--count", "150", "--seed", "7", "--seconds", "20"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("| model file, ") >= 10
    assert done.stdout.count("| checkpoint, ") >= 14


def test_the_fuzzer_notices_what_is_no_sentence(tmp_path):
    spec = importlib.util.spec_from_file_location("fuzz", FUZZ)
    fuzz = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(fuzz)

    def endless(path):
        while True:
            pass

    def fails(error):
        def read(path):
            raise error

        return read

    path = tmp_path / "x"
    assert fuzz.attempt(lambda path: None, b"", path) == "accepted"
    assert fuzz.attempt(fails(ValueError("the file is damaged: get it again")), b"", path) == "sentence"
    assert fuzz.attempt(fails(ValueError("two\nlines")), b"", path) == "ValueError, no sentence"
    assert fuzz.attempt(fails(RecursionError()), b"", path) == "RecursionError"
    assert fuzz.attempt(endless, b"", path, seconds=0.2) == "too long"
