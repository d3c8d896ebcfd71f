"""Every text of the nodes exists in every language, and the English one is that of the nodes themselves."""

from __future__ import annotations

import json
import re

import pytest
from conftest import PACK
from test_server import NODES, inputs_of

LANGUAGES = ["en", "zh", "ja", "de", "fr", "es"]


def texts(value, path=()):
    """(path, text) of every text in nested dicts."""
    if isinstance(value, str):
        yield path, value
    else:
        for key, inner in value.items():
            yield from texts(inner, (*path, key))


def definitions(language: str) -> dict:
    return json.loads((PACK / "locales" / language / "nodeDefs.json").read_text("utf-8"))


def test_english_is_what_the_nodes_say(server):
    info, english = server.client().get("/object_info"), definitions("en")
    assert set(english) == set(NODES)
    for node, texts in english.items():
        live, tips = info[node], {name: spec[1]["tooltip"] for name, spec in inputs_of(info[node]).items()}
        assert (texts["display_name"], texts["description"]) == (live["display_name"], live["description"])
        assert {name: entry["tooltip"] for name, entry in texts["inputs"].items()} == tips
        assert [entry["tooltip"] for entry in texts["outputs"].values()] == live["output_tooltips"]


@pytest.mark.parametrize("language", LANGUAGES[1:])
def test_a_language_has_every_text_and_keeps_its_numbers_and_names(language):
    english, other = dict(texts(definitions("en"))), dict(texts(definitions(language)))
    assert set(other) == set(english)
    for path, text in english.items():
        assert other[path].strip()
        if path[-1] == "tooltip":
            assert other[path] != text, f"{path} is not translated"
        for literal in re.findall(r"-?\b\d+\b|\bpsu\b|\bauto\b|dopri5|noise_mask|models/\w+", text):
            assert literal in other[path], f"{language} {path} lost {literal}"


def test_the_host_serves_them(server):
    served = server.client().get("/i18n")
    for language in LANGUAGES:
        assert set(NODES) <= set(served[language]["nodeDefs"])
