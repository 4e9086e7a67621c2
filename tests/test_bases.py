"""The backbone's own engine is compiled and looked at once for all bundles that hold the same one."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny_networks import backbone

from subtune_deploy import bases
from subtune_deploy.backbone import Backbone
from subtune_deploy.backends import onnxruntime
from subtune_deploy.bases import Bases
from subtune_deploy.build import build
from subtune_deploy.bundle import Bundle
from subtune_deploy.compiling import compile_bundle
from subtune_deploy.measure import Protocol
from subtune_deploy.sweep import SweepOptions, candidates, sweep
from subtune_deploy.targets import load_target
from subtune_deploy.tasks import candidate_task


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Roles, as they are compiled."""
    real, roles = onnxruntime.compile, list[str]()

    def record(source: Path, folder: Path, role: str, *others: object) -> None:
        roles.append(role)
        real(source, folder, role, *others)  # type: ignore[arg-type]

    monkeypatch.setattr(onnxruntime, "compile", record)
    return roles


def built(network: Backbone, fork: tuple[int, ...], folder: Path) -> Bundle:
    return build(network, [candidate_task(network, "task1", fork, seed=1)], folder, sources=False)


def test_one_base_is_compiled_once_and_another_one_by_itself(tmp_path: Path, compiled: list[str]) -> None:
    """`compile_bundle` holds every engine against the stand-alone models: a wrong base would not pass."""
    shared, target = Bases(tmp_path / "bases"), load_target("cpu")
    early, late = (built(backbone(), fork, tmp_path / str(fork[0])) for fork in ((1, 2), (4,)))
    other = built(backbone(seed=1), (4,), tmp_path / "other")
    done = [compile_bundle(each, target, make=shared.maker(each)) for each in (early, late, other)]
    assert compiled == ["graph", "base", "graph", "graph", "base"]
    engines = [(each.path / "cpu" / "base.onnx").read_bytes() for each in done]
    assert engines[0] == engines[1] != engines[2]
    alone = compile_bundle(late, target)
    assert (alone.path / "cpu" / "base.onnx").read_bytes() == engines[1]


def test_a_sweep_compiles_and_looks_at_its_base_once_and_leaves_nothing(
    tmp_path: Path, compiled: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    looked, real = list[str](), bases.footprint
    monkeypatch.setattr(
        bases, "footprint", lambda path, target, role: looked.append(role) or real(path, target, role)
    )
    quick = SweepOptions(protocol=Protocol(seconds=0.2))
    found = sweep(backbone(), candidates(4, (1, 1))[:2], [load_target("cpu")], tmp_path / "run", quick)
    assert compiled == ["graph", "base", "graph"]
    assert sorted(looked) == ["base", "graph", "graph"]
    assert found[0].base.peak_rss_bytes == found[1].base.peak_rss_bytes
    assert found[0].base.engine_bytes == found[1].base.engine_bytes
    assert not list((tmp_path / "run" / "cache").iterdir())
