"""Models -> structural CRD manifests, as files: for `kubectl apply`, and for the API server, which installs its own kinds at start.

Called by `python -m swarmtask.resources.crds DIR` (Makefile; `make check` fails when the files are stale). The API server reads
what was written (`written_manifests`): making the schemas at every start would take half as long as all else it does then.

Pydantic's schemas use `$ref` and `anyOf [.., null]`, which a structural schema does not allow; they are inlined and folded here.

Source of the rules: Kubernetes documentation, "Specifying a structural schema".
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import orjson
import yaml

from swarmtask.resources.kinds import OWN_KINDS, Kind
from swarmtask.resources.meta import Model

_KEEP = {
    "type", "description", "enum", "pattern", "minLength", "maxLength", "minimum", "maximum", "minItems", "maxItems",
    "minProperties", "maxProperties", "default", "format", "anyOf", "x-kubernetes-int-or-string", "x-kubernetes-list-type",
    "x-kubernetes-list-map-keys", "x-kubernetes-map-type", "x-kubernetes-preserve-unknown-fields",
}  # fmt: skip

WRITTEN = Path(__file__).with_name("definitions.json")


def written_manifests() -> dict[str, dict[str, Any]]:
    """The CustomResourceDefinitions of our kinds, by name, as they were written from the models."""
    written: dict[str, dict[str, Any]] = orjson.loads(WRITTEN.read_bytes())
    return written


def structural_schema(model: type[Model]) -> dict[str, Any]:
    """The OpenAPI v3 structural schema of one kind, with `metadata` left to the API server."""
    document = model.model_json_schema(by_alias=True, mode="validation")
    definitions = document.get("$defs", {})
    schema = _rewrite(document, definitions)
    properties = schema["properties"]
    properties["apiVersion"] = {"type": "string"}
    properties["kind"] = {"type": "string"}
    properties["metadata"] = {"type": "object"}
    properties["status"].pop("default", None)
    schema["required"] = [name for name in schema.get("required", []) if name == "spec"]
    if not schema["required"]:
        del schema["required"]
    return schema


def crd_manifest(kind: Kind) -> dict[str, Any]:
    """The CustomResourceDefinition of one of our kinds."""
    if kind.model is None:
        raise ValueError(f"{kind.kind} is not ours: it has no model")
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": kind.crd_name},
        "spec": {
            "group": kind.group,
            "scope": "Namespaced" if kind.namespaced else "Cluster",
            "names": {
                "kind": kind.kind,
                "listKind": f"{kind.kind}List",
                "plural": kind.plural,
                "singular": kind.singular,
                "shortNames": list(kind.short_names),
                "categories": list(kind.categories),
            },
            "versions": [
                {
                    "name": kind.version,
                    "served": True,
                    "storage": True,
                    "subresources": {"status": {}},
                    "additionalPrinterColumns": [
                        {
                            "name": column.name,
                            "type": column.type,
                            "jsonPath": column.json_path,
                            **({"priority": column.priority} if column.priority else {}),
                            **({"description": column.description} if column.description else {}),
                        }
                        for column in kind.columns
                    ],
                    "schema": {"openAPIV3Schema": structural_schema(kind.model)},
                }
            ],
        },
    }


def _rewrite(node: dict[str, Any], definitions: dict[str, Any]) -> dict[str, Any]:
    """Inline references, fold `anyOf [X, null]` into X, drop what a structural schema does not know."""
    if "$ref" in node:
        target = definitions[node["$ref"].rsplit("/", 1)[1]]
        node = {**target, **{key: value for key, value in node.items() if key != "$ref"}}
    variants = node.get("anyOf")
    if variants and any(variant.get("type") == "null" for variant in variants):
        others = [variant for variant in variants if variant.get("type") != "null"]
        if len(others) != 1:
            raise ValueError(f"a union cannot be written structurally: {node}")
        outer = {key: value for key, value in node.items() if key not in ("anyOf", "default")}
        return _rewrite({**others[0], **outer}, definitions)
    if "allOf" in node and len(node["allOf"]) == 1:
        node = {**node["allOf"][0], **{key: value for key, value in node.items() if key != "allOf"}}
        return _rewrite(node, definitions)
    if "const" in node:
        node = {**node, "enum": [node["const"]]}
    result = {key: value for key, value in node.items() if key in _KEEP and not (key == "default" and value is None)}
    if result.get("x-kubernetes-int-or-string"):
        result.pop("type", None)
    if node.get("format") == "date-time":
        result["format"] = "date-time"
    if "properties" in node:
        result["properties"] = {name: _rewrite(child, definitions) for name, child in node["properties"].items()}
        for name, child in result["properties"].items():
            # Defaults reach nested objects only when the parent exists: an object whose fields all have defaults defaults to {}.
            # One that may be absent altogether (None) stays absent.
            optional = name not in node.get("required", []) and node["properties"][name].get("default", ...) is not None
            if optional and child.get("type") == "object" and _has_defaults(child):
                child["default"] = {}
            elif optional and "default" not in child and child.get("type") in ("array", "object"):
                child.pop("default", None)
        if node.get("required"):
            result["required"] = list(node["required"])
    if isinstance(node.get("additionalProperties"), dict):
        result["additionalProperties"] = _rewrite(node["additionalProperties"], definitions)
    if isinstance(node.get("items"), dict):
        result["items"] = _rewrite(node["items"], definitions)
    return result


def _has_defaults(schema: dict[str, Any]) -> bool:
    return any("default" in child for child in schema.get("properties", {}).values())


def render(kind: Kind) -> str:
    """The manifest as the YAML text that is committed."""
    header = f"# Generated by `make crds` from operator/swarmtask/resources: edit the model of {kind.kind}, not this file.\n"
    return header + yaml.safe_dump(crd_manifest(kind), sort_keys=False, width=120, allow_unicode=True)


def rendered(folder: Path) -> dict[Path, str]:
    """Every file that is written, with what is to be in it: one for each kind in `folder`, and all of them for the API server."""
    files = {folder / f"{kind.crd_name}.yaml": render(kind) for kind in OWN_KINDS}
    together = {kind.crd_name: crd_manifest(kind) for kind in OWN_KINDS}
    return files | {WRITTEN: orjson.dumps(together, option=orjson.OPT_INDENT_2).decode() + "\n"}


def main(argv: list[str]) -> int:
    """`crds DIR` writes the manifests; `crds --check DIR` exits 1 when a file differs from the models."""
    check = "--check" in argv
    folder = Path(next(argument for argument in argv if not argument.startswith("-")))
    stale = []
    for path, text in rendered(folder).items():
        if check:
            if not path.is_file() or path.read_text() != text:
                stale.append(str(path))
        else:
            folder.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
    if stale:
        sys.stderr.write("stale, run `make crds`: " + ", ".join(stale) + "\n")
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
