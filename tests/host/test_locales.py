"""Every text of the nodes exists in every language, and the English one is that of the nodes themselves."""

from __future__ import annotations

import json
import re

import pytest

from .conftest import PACK
from .test_server import NODES, inputs_of

# Those that the interface offers.
LANGUAGES = ["en", "zh", "zh-TW", "ru", "ja", "ko", "fr", "es", "ar", "tr", "pt-BR", "fa", "he"]


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


def test_only_these_languages_have_files():
    assert {path.name for path in (PACK / "locales").iterdir()} == set(LANGUAGES)
    assert {path.stem for path in (PACK / "web" / "docs").glob("*/*.md")} == set(LANGUAGES[1:])


def test_the_host_serves_them(server):
    served = server.client().get("/i18n")
    for language in LANGUAGES:
        assert set(NODES) <= set(served[language]["nodeDefs"])


def help_page(node: str, language: str) -> str:
    """The page at the address the frontend asks first; English is the one it falls back to."""
    docs = PACK / "web" / "docs"
    return (docs / f"{node}.md" if language == "en" else docs / node / f"{language}.md").read_text("utf-8")


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("node", NODES)
def test_a_help_page_names_every_input_as_the_node_and_as_the_language_does(node, language):
    page, texts = help_page(node, language), definitions(language)[node]
    assert page.startswith(f"# {texts['display_name']}\n")
    for name in NODES[node]:
        own = "" if language == "en" else rf" ?[(（]{re.escape(texts['inputs'][name]['name'])}[)）]"
        assert re.search(rf"^- `{name}`{own}", page, re.MULTILINE), name


@pytest.mark.parametrize("language", LANGUAGES[1:])
@pytest.mark.parametrize("node", NODES)
def test_a_help_page_loses_nothing_in_translation(node, language):
    english, other = help_page(node, "en"), help_page(node, language)
    for part in (r"^#", r"^- ", r"^\|", r"\]\([^)]+\)"):
        assert len(re.findall(part, other, re.MULTILINE)) == len(re.findall(part, english, re.MULTILINE)), part
    for literal in re.findall(r"`[^`]+`|\]\([^)]+\)|(?<![\w.])-?\d+\b(?![.%])|\*[a-z][^*]+\*", english):
        assert literal in other, f"{node}/{language}.md lost {literal}"
    assert english.splitlines()[2] != other.splitlines()[2], "not translated"
