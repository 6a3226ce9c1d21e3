"""The part of kustomize that deploy/kubernetes uses, so that tests see the applied manifests.

Resources, ConfigMaps of files, JSON patches, deleted resources, image tags, and values copied from
one resource to another. What it does not know, it refuses.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

Resource = dict[str, Any]
_KNOWN = {
    "apiVersion",
    "kind",
    "resources",
    "configMapGenerator",
    "patches",
    "images",
    "replacements",
}
_LOCAL = "config.kubernetes.io/local-config"


def built(folder: Path) -> list[Resource]:
    """The manifests that `kubectl apply -k` applies for a folder."""
    return [
        each
        for each in _accumulated(folder)
        if _LOCAL not in each["metadata"].get("annotations", ())
    ]


def _accumulated(folder: Path) -> list[Resource]:
    kustomization = yaml.safe_load((folder / "kustomization.yaml").read_text())
    assert set(kustomization) <= _KNOWN, f"{set(kustomization) - _KNOWN} in {folder}: unknown here"
    resources: list[Resource] = []
    for name in kustomization.get("resources", ()):
        path = folder / name
        resources += (
            _accumulated(path) if path.is_dir() else list(yaml.safe_load_all(path.read_text()))
        )
    for each in kustomization.get("configMapGenerator", ()):
        assert each["options"]["disableNameSuffixHash"]
        resources.append(
            {
                "apiVersion": "v1",
                "kind": "ConfigMap",
                "metadata": {"name": each["name"], "annotations": each["options"]["annotations"]},
                "data": {file: (folder / file).read_text() for file in each["files"]},
            }
        )
    for each in kustomization.get("patches", ()):
        patch = yaml.safe_load((folder / each["path"]).read_text())
        if isinstance(patch, dict):
            assert patch.pop("$patch") == "delete"
            (resource,) = _found(resources, {**patch, "name": patch["metadata"]["name"]})
            resources.remove(resource)
            continue
        for operation in patch:
            for resource in _found(resources, each["target"]):
                _patch(resource, operation)
    for each in kustomization.get("images", ()):
        for container in _containers(resources):
            if container["image"] == each["name"]:
                container["image"] += f":{each['newTag']}"
    for each in kustomization.get("replacements", ()):
        source = each["source"]
        (origin,) = _found(resources, source)
        value: Any = origin
        for step in re.split(r"(?<!\\)\.", source["fieldPath"]):
            value = value[step.replace("\\", "")]
        for target in each["targets"]:
            assert target["options"] == {"create": True}
            for resource in _found(resources, target["select"]):
                for path in target["fieldPaths"]:
                    _patch(
                        resource,
                        {"op": "add", "path": "/" + path.replace(".", "/"), "value": value},
                    )
    return resources


def _found(resources: list[Resource], target: Resource) -> list[Resource]:
    found = [
        each
        for each in resources
        if each["kind"] == target["kind"]
        and target.get("name", each["metadata"]["name"]) == each["metadata"]["name"]
    ]
    assert found, f"nothing is {target}"
    return found


def _patch(resource: Resource, operation: Resource) -> None:
    *way, last = operation["path"].split("/")[1:]
    holder: Any = resource
    for step in way:
        holder = holder[int(step) if isinstance(holder, list) else step]
    match operation["op"], holder:
        case "add", list():
            assert last == "-"
            holder.append(operation["value"])
        case "add", dict():
            holder[last] = operation["value"]
        case "replace", dict():
            assert last in holder
            holder[last] = operation["value"]
        case "replace", list():
            holder[int(last)] = operation["value"]
        case "remove", dict():
            del holder[last]
        case "test", dict():
            assert holder[last] == operation["value"], f"{operation['path']} is {holder[last]}"
        case _:
            raise AssertionError(f"unknown here: {operation}")


def _containers(node: Any) -> list[Resource]:
    if isinstance(node, list):
        return [container for each in node for container in _containers(each)]
    if isinstance(node, dict):
        return [
            *node.get("containers", ()),
            *(found for each in node.values() for found in _containers(each)),
        ]
    return []
