"""Which architectures compile: every torchvision classification model, and one per timm family.

    python benchmarks/coverage.py [NAME ...]      finished models are kept; delete a line to run it again

For each model: random weights, three tasks (last two blocks; two in the middle; first and last), one ONNX graph,
ONNX Runtime against each task's stand-alone model on a random input and a photograph.
Writes benchmarks/results/coverage.jsonl (one line a model) and docs/coverage.md.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "coverage.jsonl"
TABLE = ROOT / "docs" / "coverage.md"
TIMEOUT = 900  # seconds a model may take
TOLERANCE = 1e-4


def model_names() -> list[str]:
    """All torchvision classification models; the smallest plain member of each timm family."""
    import torchvision

    families = json.loads((ROOT / "benchmarks" / "timm_families.json").read_text())
    vision = torchvision.models.list_models(module=torchvision.models)
    return [*vision, *(f"timm:{name}" for name in families.values())]


def cover(name: str) -> dict[str, Any]:
    """One line of the results; `reason` where the model fails."""
    start = time.perf_counter()
    try:
        found = _compile(name)
    except Exception as error:  # noqa: BLE001 - the reason is the result
        found = {"ok": False, "reason": f"{type(error).__name__}: {error}".splitlines()[0][:300]}
    return {"model": name, **found, "seconds": round(time.perf_counter() - start, 1)}


def _compile(name: str) -> dict[str, Any]:
    from subtune_deploy.backbone import trace
    from subtune_deploy.export import export
    from subtune_deploy.models import load_model
    from subtune_deploy.onnx_file import save_onnx
    from subtune_deploy.parity import relative_errors
    from subtune_deploy.plan import make_plan
    from subtune_deploy.references import compute_references, sample_pictures
    from subtune_deploy.tasks import candidate_task, owners

    backbone = trace(load_model(name))
    forks = _forks(len(backbone.blocks))
    tasks = [candidate_task(backbone, f"task{i}", fork, seed=i) for i, fork in enumerate(forks, start=1)]
    references = compute_references(backbone, tasks, sample_pictures()[:1], random_inputs=1)
    plan = make_plan(backbone.topology, owners(tasks))
    exported = export(backbone, tasks, plan)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "graph.onnx")
        save_onnx(exported.graph, path)
        del exported
        answers = _run(path, references.inputs)
    errors = [relative_errors(answers[task], expected).max() for task, expected in references.answers.items()]
    worst = float(max(errors, key=lambda error: (error != error, error)))
    spread = min(
        float((answer.std(axis=1) / abs(answer).max(axis=1)).min()) for answer in references.answers.values()
    )
    ok = worst <= TOLERANCE
    reason = {} if ok else {"reason": f"relative error {worst:.2g}; {_noise(backbone, references)}"}
    return {"ok": ok, "blocks": len(backbone.blocks), "error": worst, "spread": spread, **reason}


def _noise(backbone: Any, references: Any) -> str:
    """How far the stand-alone base's own float32 answers are from its float64 answers."""
    import copy

    import torch

    from subtune_deploy.parity import relative_errors

    with torch.no_grad():
        exact = copy.deepcopy(backbone.model).double()(torch.from_numpy(references.inputs).double()).numpy()
    noise = float(relative_errors(references.answers["base"], exact).max())
    return f"its own float32 answers are {noise:.2g} from float64"


def _forks(count: int) -> list[tuple[int, ...]]:
    middle = max(1, count // 2)
    forks = [{max(1, count - 1), count}, {middle, min(count, middle + 1)}, {1, count}]
    return [tuple(sorted(fork)) for fork in forks]


def _run(path: Path, inputs: Any) -> dict[str, Any]:
    import numpy as np
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    rows = [session.run(names, {"input": row[None]}) for row in inputs]
    return {name: np.concatenate([row[i] for row in rows]) for i, name in enumerate(names)}


def _in_child(name: str, connection: Any) -> None:
    connection.send(cover(name))


def cover_apart(name: str) -> dict[str, Any]:
    """In a process of its own: a crash or a hang of one model is a reason, not the end."""
    receiver, sender = multiprocessing.Pipe(duplex=False)
    child = multiprocessing.Process(target=_in_child, args=(name, sender))
    child.start()
    sender.close()
    try:
        return receiver.recv() if receiver.poll(TIMEOUT) else _failed(name, f"took over {TIMEOUT} s")
    except EOFError:
        return _failed(name, "the process died, perhaps for want of memory")
    finally:
        child.kill()
        child.join()


def _failed(name: str, reason: str) -> dict[str, Any]:
    return {"model": name, "ok": False, "reason": reason, "seconds": TIMEOUT}


def finished() -> dict[str, dict[str, Any]]:
    """What the results file holds, by model."""
    lines = RESULTS.read_text().splitlines() if RESULTS.exists() else []
    return {record["model"]: record for record in map(json.loads, lines)}


def write_table(records: list[dict[str, Any]]) -> None:
    """docs/coverage.md from the records."""
    TABLE.write_text("\n".join(_table(records)) + "\n")


def _table(records: list[dict[str, Any]]) -> Iterator[str]:
    vision = [record for record in records if not record["model"].startswith("timm:")]
    timm = [record for record in records if record["model"].startswith("timm:")]
    yield "# Coverage"
    yield ""
    yield (
        "Made by `python benchmarks/coverage.py` from `benchmarks/results/coverage.jsonl`. For each model: random "
        "weights, three tasks with different forks (last two blocks; two in the middle; first and last) in one ONNX "
        "graph; the error is the worst of base and tasks in ONNX Runtime against the stand-alone models on a random "
        f"input and a photograph (max |difference| / max |answer|, at most {TOLERANCE:g} to pass). Seconds are for "
        "everything, on one busy core. A finished model keeps its line until that is deleted, so rows can come from "
        "successive versions of the package."
    )
    for title, part in (("torchvision", vision), ("timm, one architecture per family", timm)):
        passed = sum(record["ok"] for record in part)
        yield from (
            "",
            f"## {title}: {passed} of {len(part)}",
            "",
            "| model | blocks | worst error | seconds |  |",
        )
        yield "|---|---:|---:|---:|---|"
        yield from map(_row, part)


def _row(record: dict[str, Any]) -> str:
    name, error = record["model"].removeprefix("timm:"), record.get("error")
    shown = "" if error is None else f"{error:.1e}"
    reason = "" if record["ok"] else f"fails: {record['reason']}".replace("|", "\\|")
    return f"| {name} | {record.get('blocks', '')} | {shown} | {record['seconds']:.0f} | {reason} |"


def main() -> None:
    """Run what is missing, a line of results as each ends."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    names = sys.argv[1:] or model_names()
    known = finished()
    todo = [name for name in names if name not in known]
    RESULTS.parent.mkdir(exist_ok=True)
    with RESULTS.open("a") as stream:
        for number, name in enumerate(todo, start=1):
            record = cover_apart(name)
            print(f"{number}/{len(todo)} {json.dumps(record)}", flush=True)
            stream.write(json.dumps(record) + "\n")
            stream.flush()
    known = finished()
    write_table([known[name] for name in model_names() if name in known])


if __name__ == "__main__":
    main()
