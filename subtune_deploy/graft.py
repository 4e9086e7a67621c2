"""A task pack becomes part of a bundle: the graph is made again with it, every engine is compiled again.

    graft("engines/camera", "birds.pack")         adds the task birds, or replaces the one of that name

The bundle is exchanged as a whole when all is done and checked. The base and the other tasks must answer
what they answered before, bit for bit, as ONNX Runtime runs the graphs; otherwise nothing changes.
"""

from __future__ import annotations

import shutil
from collections.abc import Collection, Sequence
from contextlib import ExitStack
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from .backbone import Backbone
from .backends import get_backend
from .backends.base import Batch, Progress, Target
from .build import BuildOptions, Say, build, plan_for
from .bundle import SOURCE, Bundle, Compile, engine_target, held, not_a_bundles, open_bundle
from .compiling import compile_bundle
from .errors import (
    BundleError,
    CheckFailed,
    CheckpointError,
    InputError,
    SubtuneError,
    Unavailable,
    did_you_mean,
)
from .manifest import SIGN_AGAIN, SIGNATURE
from .pack import Pack, read_pack, refittable, stored_weights
from .parity import TOLERANCES, References, relative_errors, run_all
from .plan import Plan, Step
from .sources import is_code, read_sources, unpacked
from .spec import InputSpec, format_layers
from .staging import staged
from .targets import load_target
from .tasks import Task, tuned_blocks

NOISE = 16
"""Inputs on which the other tasks are compared, beside those that parity was checked on."""


def graft(
    bundle_path: Path | str,
    pack_path: Path | str,
    out: Path | str | None = None,
    *,
    model: str | None = None,
    name: str | None = None,
    without: Collection[str] = (),
    calibration: Batch | None = None,
    rounding: bool = False,
    say: Say = lambda line: None,
) -> Bundle:
    """Put the task of a pack into a bundle, under its own name or `name`; the bundle with it.

    `out`: a new bundle; by default the old one is replaced. `model`: where the network's code lies, needed
    where it is not a library's. `without`: engines to leave out. `calibration`: inputs (n, C, H, W) that
    int8 engines need. `rounding`: others may be rounded otherwise, as may be where a task is replaced by one on
    other blocks; parity is still checked. Measurements and a signature are not taken over.

    Raises CheckpointError (the pack, or it does not belong here), BundleError, ModelError, TaskError,
    Unavailable (an engine that cannot be compiled here; told first), CheckFailed (another task would change).
    """
    bundle, pack = open_bundle(bundle_path), read_pack(pack_path)
    final = _final(bundle, out)
    _check_fits(pack, bundle)
    targets = _targets(bundle, without)
    _check_calibration(targets, calibration)
    bundle.verify_hashes()
    signed = (bundle.path / SIGNATURE).is_file()
    say("making the bundle's network and tasks again")
    backbone, tasks = read_sources(bundle, model)
    task = unpacked(backbone, pack, name)
    say(f"task {task.name}: tuned blocks {format_layers(tuned_blocks(backbone, task))}, {_told(task, tasks)}")
    with ExitStack() as last, staged(final, not_a_bundles) as folder:
        options, together = _options(bundle), _with(tasks, task)
        apart = _apart(bundle, backbone, together, task.name, options)
        like = References.load(bundle.path)
        built = build(backbone, together, folder, options, like=like, apart=apart, say=say)
        _compare(bundle, built, task.name, rounding, say)
        for target in targets:
            say(f"compiling for {target.name}")
            make = _refit(bundle, built, pack, task.name, target, say)
            built = compile_bundle(built, target, make=make, calibration=calibration)
        if final == bundle.path.resolve():
            last.enter_context(held(final))  # until the new one is in its place
            if open_bundle(final).manifest != bundle.manifest:
                raise BundleError(f"{final} was changed by someone else meanwhile", "graft again")
    if signed:
        say(SIGN_AGAIN)
    return open_bundle(final)


def _final(bundle: Bundle, out: Path | str | None) -> Path:
    """Where the new bundle goes: not inside the old one."""
    place = bundle.path.resolve()
    final = Path(out).resolve() if out is not None else place
    if place in final.parents:
        raise BundleError(f"{final} would lie inside the bundle {place}", "choose another folder")
    return final


def _check_fits(pack: Pack, bundle: Bundle) -> None:
    """The pack is of this bundle's base. Raises CheckpointError."""
    about, manifest = pack.about, bundle.manifest
    libraries = {each for each in (about.model, manifest.model) if not is_code(each)}
    if len(libraries) > 1 or (about.base != manifest.base and about.model != manifest.model):
        raise CheckpointError(
            f"pack {pack.path} is of another backbone: {about.model}, the bundle's is {manifest.model}",
            "give a pack that was made with this bundle's backbone",
        )
    if about.base != manifest.base:
        raise CheckpointError(
            f"pack {pack.path} was tuned on other weights of {about.model} than this bundle's",
            f"the bundle has {manifest.weights}; tune the task on these, or take the bundle that the pack is for",
        )
    if about.input != manifest.input:
        raise CheckpointError(
            f"pack {pack.path} was tuned for other pictures: {_differing(about.input, manifest.input)}",
            "all tasks share one input: tune the task for this one",
        )


def _differing(given: InputSpec, expected: InputSpec) -> str:
    names = [each.name for each in fields(InputSpec)]
    pairs = [(name, getattr(given, name), getattr(expected, name)) for name in names]
    return ", ".join(f"{name} {one}, not {two}" for name, one, two in pairs if one != two)


def _targets(bundle: Bundle, without: Collection[str]) -> list[Target]:
    """Of the engines to be compiled again. Raises Unavailable where one cannot be."""
    engines = bundle.manifest.engines
    for name in without:
        if name not in engines:
            raise BundleError(
                f"{bundle.path} has no engine {name!r} to leave out", did_you_mean(name, engines)
            )
    targets = [engine_target(bundle, name) for name in engines if name not in without]
    for target in targets:
        if target.keep:
            raise InputError(
                f"engine {target.name} keeps units in float32 that were found for other weights",
                f"graft --without {target.name}, and compile it then",
            )
    away: dict[str, Unavailable] = {}
    for target in targets:
        try:
            get_backend(target.backend)
        except Unavailable as error:
            away[target.name] = error
    if away:
        told = "; ".join(f"{name}: {error.message}" for name, error in away.items())
        hints = dict.fromkeys(error.hint for error in away.values())
        left = " ".join(f"--without {name}" for name in away)
        raise Unavailable(f"engines cannot be compiled again here: {told}", f"{'; '.join(hints)}; or {left}")
    return targets


def _check_calibration(targets: Sequence[Target], given: Batch | None) -> None:
    int8 = [target.name for target in targets if target.precision == "int8"]
    if int8 and given is None:
        raise InputError(
            f"engine {int8[0]} is int8: to compile it again needs calibration data",
            f"give --calibrate FOLDER with pictures like those to be deployed on, or --without {int8[0]}",
        )


def _told(task: Task, tasks: Sequence[Task]) -> str:
    old = "replaced" if task.name in [each.name for each in tasks] else "added"
    return f"{task.classes} classes, {old}"


def _with(tasks: Sequence[Task], new: Task) -> list[Task]:
    """The tasks with `new` in the place of its name, or last."""
    kept = [new if task.name == new.name else task for task in tasks]
    return kept if new in kept else [*kept, new]


def _options(bundle: Bundle) -> BuildOptions:
    manifest = bundle.manifest
    return BuildOptions(manifest.batch, cast(Any, manifest.merge), cast(Any, manifest.lowering))


def _apart(
    old: Bundle, backbone: Backbone, tasks: Sequence[Task], task: str, options: BuildOptions
) -> tuple[str, ...]:
    """The tasks that run shared blocks by themselves, so that nothing is computed otherwise for the others.

    A runtime may round otherwise where a block runs for one stream more, in a larger batch. So the new task runs
    apart, unless all the others' steps stay the same with it, or change either way.
    """
    before = Plan.from_json(old.manifest.plan)
    for apart in (before.apart, tuple(dict.fromkeys((*before.apart, task)))):
        if _steps(plan_for(backbone, tasks, options, apart), task) == _steps(before, task):
            return apart
    return before.apart


def _steps(plan: Plan, task: str) -> list[Step]:
    """What is computed for the others, the steps of streams other than the task's own."""
    return [step for step in plan.steps if set(step.streams) != {task}]


def _moved(old: Bundle, new: Bundle, outputs: Sequence[str]) -> dict[str, float]:
    """The outputs that are not the same bits as before, with the relative error: on stored inputs and noise.

    As ONNX Runtime runs the graphs at full optimisation, whose operators differ by the size of the batch.
    """
    noise = np.random.default_rng(0).standard_normal((NOISE, *old.manifest.input.shape)).astype(np.float32)
    inputs = np.concatenate([References.load(old.path).inputs, noise])
    cpu = load_target("cpu")
    load = partial(get_backend(cpu.backend).load, role="graph", target=cpu)
    before, after = (run_all(load(each.path), inputs, each.manifest.batch) for each in (old, new))
    moved = [name for name in outputs if not np.array_equal(before[name], after[name])]
    return {name: float(relative_errors(after[name], before[name]).max()) for name in moved}


def _compare(old: Bundle, new: Bundle, task: str, rounding: bool, say: Say) -> None:
    """Say what became of all outputs but `task`. Raises CheckFailed where they moved and must not."""
    others = [entry.name for entry in old.manifest.tasks if entry.name != task]
    moved = _moved(old, new, others)
    told = ", ".join(f"{name}, relative error {error:.1g}" for name, error in moved.items())
    allowed = TOLERANCES["fp32"] if rounding else 0
    if not all(error <= allowed for error in moved.values()):
        raise CheckFailed(
            f"with the pack in, others would not answer the same bits as before: {told}",
            "--rounding takes as much as parity does; --name NAME adds the task beside the one it would replace",
        )
    if moved:
        say(f"rounded otherwise than before: {told}")
    if kept := [name for name in others if name not in moved]:
        say(f"unchanged bit for bit: {', '.join(kept)}")


def _refit(old: Bundle, new: Bundle, pack: Pack, task: str, target: Target, say: Say) -> Compile | None:
    """What overwrites the task's weights in the old engine instead of compiling, where that can be done."""
    backend = get_backend(target.backend)
    refit_file: Any = getattr(backend, "refit_file", None)  # of TensorRT alone
    versions = old.manifest.engines[target.name].versions
    here = backend.probe()
    same = versions.get(target.backend) == here.version
    plain = "plan" not in old.manifest.engines[target.name].facts  # the new graph is made as the bundle's is
    able = refit_file is not None and target.options.get("refit") is True and here.runs and same and plain
    if not able or not _alike(old, new, pack, task):
        return None

    def make(source: Path, folder: Path, role: str, target: Target, progress: Progress) -> None:
        engine = old.path / target.name
        before = old.path if source == new.path else engine / SOURCE
        file = f"{role}.engine"
        try:
            changed = changed_weights(before / f"{role}.onnx", source / f"{role}.onnx")
            if changed:
                refit_file(engine / file, folder / file, changed)
            else:
                shutil.copyfile(engine / file, folder / file)
        except SubtuneError as error:
            say(f"{target.name}: not refitted, compiled: {error.message}")
            backend.compile(source, folder, role, target, progress)

    return make


def _alike(old: Bundle, new: Bundle, pack: Pack, task: str) -> bool:
    """Whether both graphs are the same but for the task's numbers."""
    names = [entry.name for entry in old.manifest.tasks]
    plans = [Plan.from_json(bundle.manifest.plan) for bundle in (old, new)]
    if task not in names or plans[0] != plans[1]:
        return False
    return refittable(read_pack(old.path / stored_weights(task)), pack)


def changed_weights(old: Path, new: Path) -> dict[str, npt.NDArray[Any]]:
    """The weights of ONNX file `new` that differ from those of `old`. Raises CheckFailed where names or shapes do."""
    before, after = _initializers(old), _initializers(new)
    if {name: each.shape for name, each in before.items()} != {
        name: each.shape for name, each in after.items()
    }:
        raise CheckFailed(f"{new} has not the weights of {old}", "compile it")
    return {name: each for name, each in after.items() if each.tobytes() != before[name].tobytes()}


def _initializers(path: Path) -> dict[str, npt.NDArray[Any]]:
    import onnx

    model = onnx.load(path)
    return {each.name: onnx.numpy_helper.to_array(each) for each in model.graph.initializer}
