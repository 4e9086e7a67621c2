"""Shipping: what a device gets and that it works there; options; the commands."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tarfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_bundle import TARGETS, expected, pictures
from tiny_cli import PHOTOGRAPH, cli
from tiny_shipping import key_pair, proven_bundle, tree

from subtune_deploy.archive import unpack
from subtune_deploy.bundle import Bundle, open_bundle, save_manifest, seal
from subtune_deploy.cli import shipping
from subtune_deploy.errors import BundleError, CheckFailed, InputError, SubtuneError
from subtune_deploy.parity import References, check
from subtune_deploy.runtime import load_engine
from subtune_deploy.ship import KINDS, device_manifest, ship


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """Two engines; the one for the CPU keeps the graph that it was converted from, as those of some precisions do."""
    made = proven_bundle(tmp_path_factory.mktemp("made") / "tiny", ("onnxruntime", "openvino"))
    (made.path / "cpu" / "source").mkdir()
    shutil.copy(made.path / "graph.onnx", made.path / "cpu" / "source" / "graph.onnx")
    entry = made.manifest.engines["cpu"]
    entry = replace(entry, files=(*entry.files, "cpu/source/graph.onnx"))
    figures = [{"engine": name, "task": "birds"} for name in ("graph.onnx", "cpu", "openvino-cpu")]
    timed = [{"target": name, "added": 0.1} for name in ("cpu", "openvino-cpu")]
    engines = {**made.manifest.engines, "cpu": entry}
    seal(
        made.path,
        replace(made.manifest, engines=engines, parity=tuple(figures), measurements=tuple(timed)),
    )
    return open_bundle(made.path)


def names(archive: Path) -> list[str]:
    with tarfile.open(archive) as tar:
        return tar.getnames()


# a tar


def test_a_device_gets_its_engine_its_references_and_what_speaks_of_them(
    bundle: Bundle, tmp_path: Path
) -> None:
    out = ship(bundle.path, "tar", tmp_path / "cpu.tar", targets=["cpu"])
    assert out == tmp_path / "cpu.tar"
    assert names(out) == [
        "manifest.json",
        "cpu/base.onnx",
        "cpu/graph.onnx",
        "cpu/target.json",
        "references.npz",
    ]
    manifest = unpack(out, tmp_path / "device").manifest
    assert list(manifest.engines) == ["cpu"]
    assert [figure["engine"] for figure in manifest.parity] == ["cpu"]
    assert [each["target"] for each in manifest.measurements] == ["cpu"]
    changed = {"engines", "files", "parity", "measurements"}
    for field in manifest.__dataclass_fields__:
        assert (getattr(manifest, field) == getattr(bundle.manifest, field)) == (field not in changed)
    assert manifest == device_manifest(bundle.manifest, ["cpu"])


def test_all_engines_are_shipped_unless_some_are_chosen(bundle: Bundle, tmp_path: Path) -> None:
    out = ship(bundle.path, "tar", tmp_path / "all.tar")
    assert {name.partition("/")[0] for name in names(out)} == {
        "manifest.json",
        "references.npz",
        "cpu",
        "openvino-cpu",
    }
    assert not [name for name in names(out) if "source" in name or name.endswith("graph.onnx.data")]
    both = ship(bundle.path, "tar", tmp_path / "both.tar", targets=["openvino-cpu", "cpu"])
    assert both.read_bytes() == out.read_bytes()


def test_the_same_bundle_ships_as_the_same_bytes(bundle: Bundle, tmp_path: Path) -> None:
    copy = shutil.copytree(bundle.path, tmp_path / "copy")
    first = ship(bundle.path, "tar", tmp_path / "first.tar")
    second = ship(copy, "tar", tmp_path / "second.tar")
    assert first.read_bytes() == second.read_bytes()
    assert sorted(each.name for each in tmp_path.iterdir()) == ["copy", "first.tar", "second.tar"]


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_a_device_answers_and_can_prove_it(bundle: Bundle, tmp_path: Path, backend: str) -> None:
    target = TARGETS[backend]
    out = ship(bundle.path, "tar", tmp_path / "one.tar", targets=[target.name])
    device = unpack(out, tmp_path / "device")
    device.verify_hashes()
    graph, lone = (load_engine(device, target.name, role) for role in ("graph", "base"))
    batch = pictures(3)
    for task, answers in expected(batch).items():
        np.testing.assert_allclose(graph.run(batch)[task], answers, rtol=1e-3, atol=1e-4)
    references = References.load(device.path)
    figures = check(graph, lone, references, batch=device.manifest.batch, precision="fp32")
    assert {figure["task"] for figure in figures} == {"base", "birds"}


def test_a_device_needs_numpy_and_one_backend(bundle: Bundle, tmp_path: Path) -> None:
    out = ship(bundle.path, "tar", tmp_path / "cpu.tar", targets=["cpu"])
    code = f"""
import sys
for name in ("torch", "click", "rich", "onnx", "openvino", "safetensors", "model_signing", "google.protobuf"):
    sys.modules[name] = None
from pathlib import Path
from subtune_deploy.archive import unpack
from subtune_deploy.runtime import load_engine
import numpy
device = unpack(Path({str(out)!r}), Path({str(tmp_path / "device")!r}))
print(load_engine(device, "cpu").run(numpy.ones((1, 3, 8, 8), numpy.float32))["birds"].shape)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("(1, 3)\n", "")


def test_a_signed_tar_carries_a_signature_that_a_device_insists_on(bundle: Bundle, tmp_path: Path) -> None:
    from functools import partial

    from subtune_deploy.signing import check_signature

    private, public = key_pair(tmp_path)
    signed = ship(bundle.path, "tar", tmp_path / "signed.tar", targets=["cpu"], key=private)
    plain = ship(bundle.path, "tar", tmp_path / "plain.tar", targets=["cpu"])
    insist = partial(check_signature, public_key=public)
    device = unpack(signed, tmp_path / "device", check=insist)
    device.verify_hashes()
    assert names(signed)[:2] == ["manifest.json", "model.sig"]
    with pytest.raises(CheckFailed, match=r"plain\.tar is not signed"):
        unpack(plain, tmp_path / "other", check=insist)
    assert not (tmp_path / "other").exists()
    assert not (bundle.path / "model.sig").exists()


def test_an_altered_bundle_is_not_shipped(bundle: Bundle, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(bundle.path, tmp_path / "copy"))
    (copy / "graph.onnx").write_bytes(b"altered")  # even where it does not travel: something is wrong here
    with pytest.raises(BundleError, match=r"altered: graph\.onnx"):
        ship(copy, "tar", tmp_path / "out.tar", targets=["cpu"])
    assert [each.name for each in tmp_path.iterdir()] == ["copy"]


# options


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ({"kind": "zip"}, "ships as no 'zip'"),
        ({"kind": "pack"}, "no task was given to ship as pack"),
        ({"kind": "tar", "task": "birds"}, "task 'birds' was given to ship as tar"),
        ({"kind": "pack", "task": "birds", "targets": ["cpu"]}, "a pack has no target"),
        ({"kind": "pack", "task": "birds", "key": Path("k")}, "a pack is not signed"),
        ({"kind": "triton", "key": Path("k")}, "a triton is not signed"),
        ({"kind": "triton"}, "a model is one engine, not cpu, openvino-cpu"),
        ({"kind": "triton", "targets": ["cpi"]}, "has no engine 'cpi'"),
        ({"kind": "tar", "targets": ["cpi"]}, "has no engine 'cpi'"),
        ({"kind": "tar", "key": Path("none.pem")}, r"key none\.pem cannot be read"),
        ({"kind": "tar", "out": "bundle/x.tar"}, "would lie inside the bundle"),
        ({"kind": "triton", "targets": ["cpu"], "out": "bundle"}, "would lie inside the bundle"),
        ({"kind": "tar", "out": "no/such/folder/x.tar"}, "lies in no existing folder"),
    ],
)
def test_bad_options_are_named_and_nothing_is_left(
    bundle: Bundle, tmp_path: Path, arguments: dict[str, Any], complaint: str
) -> None:
    shutil.copytree(bundle.path, tmp_path / "bundle")
    before = tree(tmp_path)
    out = tmp_path / arguments.pop("out", "out")
    with pytest.raises(SubtuneError, match=complaint) as caught:
        ship(tmp_path / "bundle", out=out, **arguments)
    assert isinstance(caught.value, InputError)
    assert caught.value.hint
    assert tree(tmp_path) == before


def test_a_bundle_without_engines_has_nothing_to_ship(tmp_path: Path) -> None:
    bare = proven_bundle(tmp_path / "bare", ())
    with pytest.raises(BundleError, match="has no engine to ship") as caught:
        ship(bare.path, "tar", tmp_path / "out.tar")
    assert "subtune-deploy compile" in caught.value.hint


# commands


def test_the_command_offers_every_kind() -> None:
    (option,) = [each for each in shipping.ship.params if each.name == "kind"]
    assert tuple(option.type.choices) == KINDS  # type: ignore[attr-defined]


def test_a_bundle_is_shipped_unpacked_and_run(bundle: Bundle, tmp_path: Path) -> None:
    private, public = key_pair(tmp_path)
    out, device = tmp_path / "cpu.tar", tmp_path / "device"
    shipped = cli("ship", bundle.path, "--as", "tar", "-o", out, "--target", "cpu", "--sign", private)
    assert (shipped.status, shipped.err) == (0, "")
    assert shipped.out == f"tar: {out}, {out.stat().st_size:,} bytes, signed\n"
    unpacked = cli("unpack", out, "-o", device, "--key", public)
    assert (unpacked.status, unpacked.err) == (0, "")
    assert unpacked.out.splitlines() == ["4 files are as they were made, and signed", f"bundle: {device}"]
    ran = cli("run", device, PHOTOGRAPH, "--json")
    here = cli("run", bundle.path, PHOTOGRAPH, "--target", "cpu", "--json")
    assert ran.document["pictures"] == here.document["pictures"]


def test_a_signature_that_nobody_asked_for_is_mentioned(bundle: Bundle, tmp_path: Path) -> None:
    private, _ = key_pair(tmp_path)
    ship(bundle.path, "tar", tmp_path / "x.tar", key=private)
    done = cli("unpack", tmp_path / "x.tar", "-o", tmp_path / "device")
    assert done.status == 0
    assert done.err == "signed, but nobody asked by whom: give --key\n"


def test_a_device_that_insists_refuses_with_status_1(bundle: Bundle, tmp_path: Path) -> None:
    private, _ = key_pair(tmp_path)
    _, other = key_pair(tmp_path, "other")
    ship(bundle.path, "tar", tmp_path / "x.tar", key=private)
    done = cli("unpack", tmp_path / "x.tar", "-o", tmp_path / "device", "--key", other)
    assert done.status == 1
    assert done.err.startswith("error: the signature of ")
    assert len(done.err.splitlines()) == 2
    assert not (tmp_path / "device").exists()


def test_a_triton_repository_from_the_command(bundle: Bundle, tmp_path: Path) -> None:
    done = cli("ship", bundle.path, "--as", "triton", "-o", tmp_path / "models", "--target", "cpu")
    assert (done.status, done.err) == (0, "")
    assert done.out.startswith(f"triton: {tmp_path / 'models' / 'tiny_cpu'}, ")


def test_a_pack_of_a_bundle_without_weights_is_refused(bundle: Bundle, tmp_path: Path) -> None:
    done = cli("ship", bundle.path, "--as", "pack", "--task", "birds", "-o", tmp_path / "birds.pack")
    assert done.status == 2
    assert "not the weights they were made from" in done.err
    for name in ("base", "brids"):
        assert cli("ship", bundle.path, "--as", "pack", "--task", name, "-o", tmp_path / "x").status == 2
    assert list(tmp_path.iterdir()) == []


def test_a_manifest_of_another_time_is_not_taken(bundle: Bundle, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(bundle.path, tmp_path / "copy"))
    document = json.loads((copy / "manifest.json").read_text())
    document["schema"] += 1
    (copy / "manifest.json").write_text(json.dumps(document))
    assert "schema version is" in cli("ship", copy, "--as", "tar", "-o", tmp_path / "x.tar").err
    save_manifest(copy, bundle.manifest)
    assert cli("ship", copy, "--as", "tar", "-o", tmp_path / "x.tar").status == 0
