"""The data flows one way: a module imports only what stands above it; the runtime needs no PyTorch."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "subtune_deploy"

ORDER = (  # noqa: SIM905
    "errors spec records staging documents lines tensorfile pictures checkpoint factory models blocks topology "
    "tracing probing backbone attention widths heads versions channels prunable pruning diff tasks plan packing "
    "work costs layouts grouped multitask folding pooling translations onnx_file export environment backends targets "
    "cost_model calibrated stats pareto joint memory conditions measure loads streams calibration "
    "bias_correction hard_sigmoid quantization precision manifest bundle parity references runtime footprint bases "
    "results result_tables latency_model fitting predictor timing throughput proof compiling pack sources build "
    "racing sensitivity precision_search plan_ways plan_search archive signing triton graft ship run_folder sweep "
    "calibrating data executors tuning tradeoff choice breakdown report_words report_points report goal optimize "
    "demo_tables demo cli"
).split()

TORCH_FREE = (  # noqa: SIM905
    "errors spec records staging documents lines tensorfile pictures topology plan packing work environment "
    "backends targets cost_model calibrated stats pareto joint memory conditions measure loads streams "
    "calibration bias_correction quantization precision manifest bundle parity runtime footprint bases "
    "results result_tables fitting latency_model timing throughput proof compiling racing sensitivity "
    "precision_search pack archive signing triton run_folder"
).split()

TUNING = (  # noqa: SIM905
    "settings trials documents start cut values chunks keep frozen learner train jobs study selection budget tables "
    "drawing figures maps profile greedy active"
).split()
"""Within `tuning`: the same rule, one folder below."""


def modules() -> list[Path]:
    return sorted(
        path for path in PACKAGE.rglob("*.py") if path.name != "__init__.py" or path.parent != PACKAGE
    )


def place(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported(path: Path, *, at_import_time: bool = False) -> set[str]:
    """Top-level modules of the package that `path` imports."""
    tree = ast.parse(path.read_text())
    nodes = tree.body if at_import_time else ast.walk(tree)
    depth = len(path.relative_to(PACKAGE).parts)
    found: set[str] = set()
    for node in nodes:
        if isinstance(node, ast.ImportFrom) and node.level == depth:
            names = [node.module] if node.module else [alias.name for alias in node.names]
            found |= {name.split(".")[0] for name in names}
    return found - {"__version__"}


def test_every_module_has_a_place_in_the_order() -> None:
    assert {place(path) for path in modules()} == set(ORDER)


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_upwards(path: Path) -> None:
    mine = place(path)
    below = {name for name in imported(path) if ORDER.index(name) > ORDER.index(mine)}
    assert not below, f"{mine} imports {below}, which stand below it"


@pytest.mark.parametrize("path", sorted((PACKAGE / "tuning").glob("[!_]*.py")), ids=lambda path: path.stem)
def test_within_tuning_imports_point_upwards_too(path: Path) -> None:
    siblings = {
        node.module
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ImportFrom) and node.level == 1 and node.module
    }
    below = {name for name in siblings if TUNING.index(name) > TUNING.index(path.stem)}
    assert not below, f"{path.stem} imports {below}, which stand below it"


def test_the_design_document_lists_the_modules_in_this_order() -> None:
    text = (PACKAGE.parent / "docs" / "design.md").read_text()
    listed = [line.split("`")[1] for line in text.splitlines() if line.startswith("| `")]
    assert listed == ORDER


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_modules_stay_small(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= 350


def test_the_torch_free_half_imports_no_torch_click_or_rich() -> None:
    code = "import sys\n" + "".join(f"import subtune_deploy.{name}\n" for name in TORCH_FREE)
    code += "print([n for n in ('torch', 'click', 'rich', 'onnx', 'onnxruntime', 'openvino') if n in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_importing_the_command_line_is_light() -> None:
    code = "import sys, subtune_deploy.cli; print([n for n in ('torch', 'onnx', 'openvino') if n in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
