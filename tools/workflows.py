"""Write the templates in workflows/, their API forms in workflows/api/ and the blocks in subgraphs/.

    python -m tools.workflows --server 127.0.0.1:8188

The server is a ComfyUI with this pack, whose node definitions say which inputs and widgets there are. What the
templates hold stands in tools/workflow_specs.py.
"""

from __future__ import annotations

import argparse
import json
import urllib.request
import uuid
from pathlib import Path
from typing import Any

from .workflow_parts import SIZES, Block, Node, Template
from .workflow_specs import BLOCKS, TEMPLATES

ROOT = Path(__file__).parents[1]
WIDGETS = {"INT", "FLOAT", "STRING", "BOOLEAN", "COMBO"}
COLUMN, WIDTH, TITLE, GAP = 340, 300, 30, 14
Schemas = dict[str, Any]
Link = tuple[int, int, int, int, int, str]  # link, origin, its slot, target, its slot, type


def inputs_of(schema: dict[str, Any]) -> dict[str, list[Any]]:
    return {**schema["input"]["required"], **schema["input"].get("optional", {})}


def options_of(spec: list[Any]) -> dict[str, Any]:
    return spec[1] if len(spec) > 1 else {}


def is_widget(spec: list[Any]) -> bool:
    return isinstance(spec[0], list) or spec[0] in WIDGETS


def default_of(spec: list[Any]) -> Any:
    choices = spec[0] if isinstance(spec[0], list) else options_of(spec).get("options", [None])
    return options_of(spec).get("default", choices[0] if choices else None)


def is_wire(value: Any) -> bool:
    return isinstance(value, tuple)


class Graph:
    """The nodes of a workflow with their links, in the form in which the frontend saves them."""

    def __init__(self, nodes: list[Node], schemas: Schemas) -> None:
        self.schemas, self.links = schemas, []
        self.ids = {node.key: number for number, node in enumerate(nodes, start=1)}
        self.kinds = {node.key: node.kind for node in nodes}
        self.nodes = [self._node(node, order) for order, node in enumerate(nodes)]
        for saved in self.nodes:
            for slot, output in enumerate(saved["outputs"]):
                output["links"] = [link[0] for link in self.links if link[1:3] == (saved["id"], slot)] or None

    def _node(self, node: Node, order: int) -> dict[str, Any]:
        if node.kind == "MarkdownNote":
            saved = self._frame(node, order)
            saved |= {"title": node.title, "widgets_values": [node.values["text"]], "color": "#432", "bgcolor": "#653"}
            return saved
        schema, sockets, widgets, named = self.schemas[node.kind], [], [], {}
        for name, spec in inputs_of(schema).items():
            optional = {"shape": 7} if name in schema["input"].get("optional", {}) else {}
            entry = {"localized_name": name, "name": name, **optional, "type": "COMBO", "link": None}
            if not isinstance(spec[0], list):
                entry["type"] = spec[0]
            if is_widget(spec):
                widgets.append({**entry, "widget": {"name": name}})
                named[name] = node.values.get(name, default_of(spec))
                if options_of(spec).get("control_after_generate"):
                    named["control_after_generate"] = "fixed"
                if options_of(spec).get("image_upload"):
                    upload = {"localized_name": "choose file to upload", "name": "upload", "type": "IMAGEUPLOAD"}
                    widgets.append({**upload, "widget": {"name": "upload"}, "link": None})
                    named["upload"] = "image"
            else:
                sockets.append(entry)
        for slot, socket in enumerate(sockets):
            if is_wire(value := node.values.get(socket["name"])) and value[0]:
                socket["link"] = self._link(value, self.ids[node.key], slot)
        saved = self._frame(node, order) | {"inputs": sockets + widgets}
        saved["outputs"] = [
            {"localized_name": name, "name": name, "type": kind, "links": None}
            for name, kind in zip(schema["output_name"], schema["output"], strict=True)
        ]
        pack = "fmboost" if node.kind.startswith("FMBoost_") else "comfy-core"
        saved["properties"] = {"Node name for S&R": node.kind, "cnr_id": pack}
        if node.models:
            saved["properties"]["models"] = node.models
        if node.title:
            saved["title"] = node.title
        if named:
            saved |= {"widgets_values": list(named.values()), "widgets_values_named": named}
        return saved

    def _frame(self, node: Node, order: int) -> dict[str, Any]:
        size = [WIDTH, node.height or SIZES[node.kind]]
        frame = {"id": self.ids[node.key], "type": node.kind, "pos": [0, 0], "size": size, "flags": {}, "order": order}
        return {**frame, "mode": 0, "inputs": [], "outputs": [], "properties": {}}

    def _link(self, wire: tuple[str, int], target: int, slot: int) -> int:
        origin, output = wire
        kind = self.schemas[self.kinds[origin]]["output"][output]
        self.links.append((len(self.links) + 1, self.ids[origin], output, target, slot, kind))
        return len(self.links)


def arrange(graph: Graph, columns: list[list[Any]]) -> list[dict[str, Any]]:
    """Place the nodes in columns; returns the groups around those that are listed under a title."""
    by_id, groups = {node["id"]: node for node in graph.nodes}, []
    for number, column in enumerate(columns):
        x, y = number * COLUMN, 0
        for title, nodes in column:
            top = y
            y += TITLE + 10 if title else 0
            for node in nodes:
                saved = by_id[graph.ids[node.key]]
                saved["pos"] = [x, y + TITLE]
                y += TITLE + saved["size"][1] + GAP
            if title:
                box = [x - 10, top, WIDTH + 20, y - top]
                groups.append({"id": len(groups) + 1, "title": title, "bounding": box, "color": "#3f789e"})
                groups[-1] |= {"font_size": 24, "flags": {}}
            y += GAP
    return groups


def workflow(template: Template, schemas: Schemas) -> dict[str, Any]:
    nodes = [node for column in template.columns for _, nodes in column for node in nodes]
    graph = Graph(nodes, schemas)
    groups = arrange(graph, template.columns)
    head = {"id": str(uuid.uuid5(uuid.NAMESPACE_URL, f"fmboost/{template.api}")), "revision": 0}
    head |= {"last_node_id": len(nodes), "last_link_id": len(graph.links)}
    extra = {"fmboost_api": f"{template.api}.json"}
    body = {"nodes": graph.nodes, "links": [list(link) for link in graph.links], "groups": groups}
    return {**head, **body, "config": {}, "extra": extra, "version": 0.4}


def api(template: Template, schemas: Schemas) -> dict[str, Any]:
    """What the frontend would send, less the optional inputs that are at their defaults."""
    nodes = [node for column in template.columns for _, nodes in column for node in nodes]
    ids, sent = {node.key: str(number) for number, node in enumerate(nodes, start=1)}, {}
    for node in nodes:
        if node.kind == "MarkdownNote":
            continue
        schema, inputs = schemas[node.kind], {}
        for name, spec in inputs_of(schema).items():
            value = node.values.get(name, default_of(spec) if is_widget(spec) else None)
            if is_wire(value):
                inputs[name] = [ids[value[0]], value[1]]
            elif is_widget(spec) and (name in node.values or name in schema["input"]["required"]):
                inputs[name] = value
        title = node.title or schema["display_name"]
        sent[ids[node.key]] = {"class_type": node.kind, "inputs": inputs, "_meta": {"title": title}}
    return sent


def block(spec: Block, schemas: Schemas) -> dict[str, Any]:
    """A subgraph blueprint: its inputs and outputs are those that `spec` names, by node, slot and type."""
    graph = Graph(spec.nodes, schemas)
    for number, saved in enumerate(graph.nodes):
        saved["pos"] = [number * COLUMN, 0]
    identity = str(uuid.uuid5(uuid.NAMESPACE_URL, f"fmboost/{spec.name}"))
    names = ("id", "origin_id", "origin_slot", "target_id", "target_slot", "type")
    links: list[dict[str, Any]] = [dict(zip(names, link, strict=True)) for link in graph.links]
    by_id = {node["id"]: node for node in graph.nodes}
    ports: dict[str, list[dict[str, Any]]] = {"inputs": [], "outputs": []}
    for side, listed in (("inputs", spec.inputs), ("outputs", spec.outputs)):
        for slot, (name, kind, ends) in enumerate(listed):
            numbers = []
            for key, wanted in ends:
                node, number = by_id[graph.ids[key]], len(links) + 1
                end = next(i for i, entry in enumerate(node[side]) if entry["name"] == wanted)
                if side == "inputs":
                    node["inputs"][end]["link"] = number
                    origin, target = (-10, slot), (node["id"], end)
                else:
                    node["outputs"][end]["links"] = [*(node["outputs"][end]["links"] or []), number]
                    origin, target = (node["id"], end), (-20, slot)
                link = {"origin_id": origin[0], "origin_slot": origin[1]}
                link |= {"target_id": target[0], "target_slot": target[1]}
                links.append({"id": number, **link, "type": kind})
                numbers.append(number)
            x = -140 if side == "inputs" else len(spec.nodes) * COLUMN + 20
            port = {"id": str(uuid.uuid5(uuid.NAMESPACE_URL, f"fmboost/{spec.name}/{side}/{name}")), "name": name}
            port |= {"type": kind, "linkIds": numbers, "localized_name": name, "pos": [x, 20 + 20 * slot]}
            ports[side].append(port)
    definition = {"id": identity, "version": 1, "revision": 0, "config": {}, "name": spec.name}
    definition["state"] = {"lastGroupId": 0, "lastNodeId": len(spec.nodes), "lastLinkId": len(links)}
    definition["state"]["lastRerouteId"] = 0
    definition["inputNode"] = {"id": -10, "bounding": [-260, 0, 120, 40 + 20 * len(spec.inputs)]}
    definition["outputNode"] = {"id": -20, "bounding": [len(spec.nodes) * COLUMN, 0, 120, 60]}
    definition |= {**ports, "widgets": [], "nodes": graph.nodes, "groups": [], "links": links, "extra": {}}
    definition |= {"category": spec.category, "description": spec.description}
    return _around(spec, definition, graph.ids)


def _around(spec: Block, definition: dict[str, Any], ids: dict[str, int]) -> dict[str, Any]:
    """The file around a definition: a workflow of one node, which is an instance of it."""
    plain = [("name", "localized_name", "type"), {"link": None}]
    proxies = [[str(ids[key]), name] for key, name in spec.widgets]
    node = {"id": len(ids) + 1, "type": definition["id"], "pos": [0, 0], "size": [300, 60 + 26 * len(proxies)]}
    node |= {"flags": {}, "order": 0, "mode": 0, "title": spec.name}
    node["inputs"] = [{key: port[key] for key in plain[0]} | plain[1] for port in definition["inputs"]]
    node["outputs"] = [{key: port[key] for key in plain[0]} | {"links": []} for port in definition["outputs"]]
    node |= {"properties": {"proxyWidgets": proxies, "cnr_id": "fmboost"}, "widgets_values": []}
    head = {"id": str(uuid.uuid5(uuid.NAMESPACE_URL, f"fmboost/{spec.name}/file")), "revision": 0}
    head |= {"last_node_id": node["id"], "last_link_id": 0, "nodes": [node], "links": [], "groups": []}
    extra = {"BlueprintDescription": spec.description, "BlueprintSearchAliases": list(spec.aliases)}
    return {**head, "definitions": {"subgraphs": [definition]}, "config": {}, "extra": extra, "version": 0.4}


def write(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--server", default="127.0.0.1:8188", metavar="HOST:PORT")
    options = parser.parse_args()
    with urllib.request.urlopen(f"http://{options.server}/object_info") as answer:
        schemas = json.load(answer)
    for name, template in TEMPLATES.items():
        write(ROOT / "workflows" / f"{name}.json", workflow(template, schemas))
        write(ROOT / "workflows" / "api" / f"{template.api}.json", api(template, schemas))
    for spec in BLOCKS:
        write(ROOT / "subgraphs" / f"{spec.name}.json", block(spec, schemas))


if __name__ == "__main__":
    main()
