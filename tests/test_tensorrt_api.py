"""Every name of TensorRT that our code uses exists in the real bindings: 10.13, 10.16, 11.4 and TensorRT-RTX.

Our code takes the library as a parameter, so nothing else would notice a misspelt name before a GPU does. The source
is read, not run: the classes of values follow from `api.Class(...)`, from what methods are documented to return, and,
for parameters, from the names below. What the bindings hold was written down by tools/tensorrt_names.py.
"""

from __future__ import annotations

import ast
import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from subtune_deploy.backends.tensorrt.builder import capability_text
from subtune_deploy.backends.tensorrt.header import CAPABILITIES, NEWER
from subtune_deploy.backends.tensorrt.messages import SEVERITIES
from subtune_deploy.backends.tensorrt.settings import HARDWARE, VERBOSITY

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "subtune_deploy" / "backends" / "tensorrt"

VARIABLES = {
    "builder.py": {
        "builder": "Builder",
        "config": "IBuilderConfig",
        "network": "INetworkDefinition",
        "parser": "OnnxParser",
        "profile": "IOptimizationProfile",
    },
    "engine.py": {"context": "IExecutionContext", "engine": "ICudaEngine"},
    "graphs.py": {"error": "ParserError", "parser": "OnnxParser"},
    "header.py": {},
    "messages.py": {"severity": "ILogger.Severity"},
    "monitor.py": {},
    "network.py": {"layer": "ILayer", "network": "INetworkDefinition", "tensor": "ITensor"},
    "refit.py": {"engine": "ICudaEngine"},
}
"""What a variable, parameter or attribute of this name holds, in the modules that are given the library."""

RTX_ONLY = {
    ("", "ComputeCapability"),
    ("", "CudaGraphStrategy"),
    ("", "DynamicShapesKernelSpecializationStrategy"),
    ("", "EngineInvalidityDiagnostics"),
    ("IBuilderConfig", "num_compute_capabilities"),
    ("IBuilderConfig", "set_compute_capability"),
    ("IRuntimeConfig", "cuda_graph_strategy"),
    ("IRuntimeConfig", "dynamic_shapes_kernel_specialization_strategy"),
    ("Runtime", "get_engine_validity"),
}
"""Used behind `hasattr`, or for options that standard TensorRT refuses."""

tool_spec = importlib.util.spec_from_file_location("tensorrt_names", ROOT / "tools" / "tensorrt_names.py")
assert tool_spec is not None
assert tool_spec.loader is not None
tool = importlib.util.module_from_spec(tool_spec)
tool_spec.loader.exec_module(tool)

STANDARD = tool.read()
Use = tuple[str, str]


class Reader:
    """Finds (class, name) uses of the library in one function; class "" is the library itself."""

    def __init__(self, listing: dict[str, dict[str, str]], variables: dict[str, str]) -> None:
        self.listing, self.variables = listing, variables
        self.scope: dict[str, tuple[str, str] | None] = {}
        self.uses: set[Use] = set()

    def read(self, tree: ast.AST) -> set[Use]:
        for node in in_order(tree):
            if isinstance(node, (ast.For, ast.comprehension)):  # records of our own, whatever they are called
                names = [each.id for each in ast.walk(node.target) if isinstance(each, ast.Name)]
                self.scope.update(dict.fromkeys(names))
        for node in in_order(tree):
            if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
                kind = self.kind(node.value)
                if kind is not None:
                    self.scope[node.targets[0].id] = kind
            if isinstance(node, ast.Attribute):
                self.kind(node)
        return self.uses

    def kind(self, node: ast.AST) -> tuple[str, str] | None:
        """("class" or "value", name of the class) of an expression, as far as it can be told."""
        if isinstance(node, ast.Name):
            if node.id == "api":
                return ("class", "")
            return self.scope[node.id] if node.id in self.scope else self.named(node.id)
        if isinstance(node, ast.Call):
            called = self.kind(node.func)
            return ("value", called[1]) if called else None
        if isinstance(node, ast.Attribute):
            return self.attribute(node)
        return None

    def attribute(self, node: ast.Attribute) -> tuple[str, str] | None:
        holder = self.kind(node.value)
        if node.attr == "_api":
            return ("class", "")
        if holder is None:
            return self.named(node.attr)
        if node.attr.startswith("__"):
            return None
        _, of = holder
        self.uses.add((of, node.attr))
        inside = f"{of}.{node.attr}" if of else node.attr
        if inside in self.listing:
            return ("class", inside)
        returned = tool.members(self.listing, of).get(node.attr, "")
        return ("value", returned) if returned in self.listing and returned else None

    def named(self, name: str) -> tuple[str, str] | None:
        return ("value", self.variables[name]) if name in self.variables else None


def in_order(tree: ast.AST) -> Iterator[ast.AST]:
    for child in ast.iter_child_nodes(tree):
        yield child
        yield from in_order(child)


def uses(source: str, variables: dict[str, str], listing: dict[str, dict[str, str]]) -> set[Use]:
    functions = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.FunctionDef)]
    return set().union(*(Reader(listing, variables).read(function) for function in functions))


def used(listing: dict[str, dict[str, str]]) -> set[Use]:
    found = (uses((PACKAGE / name).read_text(), table, listing) for name, table in VARIABLES.items())
    return set().union(*found)


def missing(listing: dict[str, dict[str, str]]) -> set[Use]:
    return {(kind, name) for kind, name in used(listing) if name not in tool.members(listing, kind)}


def rtx() -> dict[str, dict[str, str]]:
    listing: dict[str, dict[str, str]] = tool.listed(pytest.importorskip("tensorrt_rtx"))
    return listing


def test_every_module_that_is_given_the_library_is_read() -> None:
    given = {"api", "parser"}
    trees = {path.name: ast.parse(path.read_text()) for path in PACKAGE.glob("*.py")}
    takes_it = {
        name
        for name, tree in trees.items()
        if given & {node.arg for node in ast.walk(tree) if isinstance(node, ast.arg)}
    }
    assert takes_it - {"cuda.py"} == set(VARIABLES)  # there `api` is CUDA's


def test_every_name_exists_in_tensorrt_rtx() -> None:
    assert missing(rtx()) == set()


@pytest.mark.parametrize("version", STANDARD)
def test_every_name_exists_in_standard_tensorrt(version: str) -> None:
    assert missing(STANDARD[version]) - RTX_ONLY == set()


def test_the_versions_written_down_are_the_ones_that_we_claim() -> None:
    assert {version.rsplit(".", 2)[0] for version in STANDARD} == {"10.13", "10.16", "11.4"}
    for listing in STANDARD.values():
        assert {"Builder", "OnnxParser", "ICudaEngine", "IExecutionContext", "Refitter"} <= set(listing)


def test_what_is_called_rtx_only_is_used_and_is_in_no_standard_version() -> None:
    assert used(rtx()) >= RTX_ONLY
    for listing in STANDARD.values():
        assert not [(kind, name) for kind, name in RTX_ONLY if name in tool.members(listing, kind)]


def test_the_reading_finds_what_we_know_to_be_used() -> None:
    found = used(rtx())
    assert {
        ("", "Builder"),
        ("Builder", "build_serialized_network"),
        ("BuilderFlag", "TF32"),
        ("BuilderFlag", "REFIT_INDIVIDUAL"),
        ("IBuilderConfig", "add_optimization_profile"),
        ("IBuilderConfig", "progress_monitor"),
        ("IBuilderConfig", "create_timing_cache"),
        ("ICudaEngine", "get_tensor_name"),
        ("IExecutionContext", "execute_async_v3"),
        ("INetworkDefinition", "mark_weights_refittable"),
        ("IOptimizationProfile", "set_shape"),
        ("ITimingCache", "serialize"),
        ("MemoryPoolType", "WORKSPACE"),
        ("NetworkDefinitionCreationFlag", "STRONGLY_TYPED"),
        ("OnnxParser", "parse_from_file"),
        ("OnnxParser", "supports_model_v2"),
        ("ParserError", "node_name"),
        ("Refitter", "refit_cuda_engine"),
        ("Runtime", "deserialize_cuda_engine"),
    } <= found


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("api.Bilder(logger)", ("", "Bilder")),
        ("api.BuilderFlag.TF64", ("BuilderFlag", "TF64")),
        ("api.Builder(logger).create_net(1)", ("Builder", "create_net")),
        ("api.Builder(logger).create_network(1).num_layer", ("INetworkDefinition", "num_layer")),
        ("self._api.Runtime(logger).deserialise", ("Runtime", "deserialise")),
        ("parsed.network.nun_inputs", ("INetworkDefinition", "nun_inputs")),
    ],
)
def test_a_misspelt_name_is_noticed(line: str, found: Use) -> None:
    listing = STANDARD["11.4.0.106"]
    function = f"def f(self, api, logger, parsed):\n    return {line}\n"
    assert found in uses(function, VARIABLES["builder.py"], listing)
    assert found[1] not in tool.members(listing, found[0])


def test_a_value_keeps_its_class_through_an_assignment() -> None:
    lines = ("b = api.Builder(1)", "c = b.create_builder_config()", "c.set_flg(api.BuilderFlag.FP16)")
    function = "def f(api):\n" + "".join(f"    {line}\n" for line in lines)
    listing = STANDARD["11.4.0.106"]
    found = uses(function, {}, listing)
    assert ("IBuilderConfig", "set_flg") in found
    assert "FP16" not in tool.members(listing, "BuilderFlag")  # gone in 11: precision travels in the graph
    assert "FP16" in tool.members(STANDARD["10.16.1.11"], "BuilderFlag")


@pytest.mark.parametrize("version", [*STANDARD, "tensorrt_rtx"])
def test_members_that_are_chosen_by_name_exist(version: str) -> None:
    listing: Any = rtx() if version == "tensorrt_rtx" else STANDARD[version]
    assert {name.upper() for name in HARDWARE} <= set(listing["HardwareCompatibilityLevel"])
    assert {name.upper() for name in VERBOSITY} <= set(listing["ProfilingVerbosity"])
    severities = listing.get("ILogger.Severity") or listing["Logger.Severity"]
    assert set(SEVERITIES) <= set(severities)


def test_the_capabilities_of_a_header_are_those_that_the_library_knows() -> None:
    members = [name for name in rtx()["ComputeCapability"] if name.startswith("SM")]
    assert sorted(map(capability_text, members)) == sorted(set(CAPABILITIES) - {NEWER})
