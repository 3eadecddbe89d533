"""The JSON Schema of experiment files, for editors."""

from __future__ import annotations

from typing import Any

from raytuner.definition.experiment import Experiment

__all__ = ["schema"]

DIALECT = "https://json-schema.org/draft/2020-12/schema"


def schema() -> dict[str, Any]:
    """The JSON Schema (draft 2020-12) of an experiment file, short forms and descriptions included.

    It knows keys, types, ranges and options; rules between keys (constraints, conditions, defaults) are for ``load``.
    """
    found = _tidy(Experiment.model_json_schema(mode="validation"))
    assert isinstance(found, dict)
    return {"$schema": DIALECT, "title": "raytuner experiment", **{k: v for k, v in found.items() if k != "title"}}


def _tidy(node: Any) -> Any:
    """Removes generated titles and marks of plain text; makes the type of a component a key that a file must give."""
    if isinstance(node, list):
        return [_tidy(each) for each in node]
    if not isinstance(node, dict):
        return node
    tidy = {key: _tidy(each) for key, each in node.items() if not (key == "title" and isinstance(each, str))}
    if isinstance(text := tidy.get("description"), str):
        # Editors show it as plain text; what follows the first paragraph is about Python.
        tidy["description"] = " ".join(text.partition("\n\n")[0].replace("``", "").split())
    properties = tidy.get("properties", {})
    if "const" in properties.get("type", {}) and "type" not in tidy.get("required", []):
        tidy["required"] = ["type", *tidy.get("required", [])]
    return tidy
