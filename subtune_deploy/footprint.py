"""How much memory an engine needs at its worst, measured in a process that does nothing else.

    python -m subtune_deploy.footprint BUNDLE TARGET ROLE

is that process: it loads the engine, runs it, and prints one line of JSON.
"""

from __future__ import annotations

import json
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from . import errors
from .backends.base import COMPILE_AGAIN, ROLES, fewest_pictures
from .bundle import Bundle, engine_target, open_bundle
from .environment import kilobytes
from .errors import CheckFailed, InputError, SubtuneError, did_you_mean
from .manifest import RECIPE
from .runtime import engine_files, load_engine

MAIN = f"import sys; sys.path[:] = filter(None, sys.path); from {__name__} import main; main(sys.argv[1:])"
"""Of that process, with nothing from the folder where it runs: there may be a file that is called as a library is."""
RUNS = 3
"""The first run allocates what later runs use again; some libraries settle only after the second."""
SECONDS = 300
"""To load and run; an engine that takes longer is of no use, or the machine swaps."""


@dataclass(frozen=True)
class Footprint:
    """In bytes. Memory of a GPU is not in it.

    `engine_bytes`: the engine's files. `peak_rss_bytes`: the most memory that the process ever held, which
    includes what loading needs for a moment. `start_rss_bytes`: what it held with Python, numpy and this
    package loaded, before the backend's library: the difference is what the engine brings to a program that
    already runs. None where the system does not say.
    """

    engine_bytes: int
    peak_rss_bytes: int | None
    start_rss_bytes: int | None


Look = Callable[[Path, str, str], Footprint]
"""As `footprint`."""


def footprint(bundle: Path, target: str, role: str) -> Footprint:
    """Load the engine of `role` in a process of its own, run it three times on random input, and look.

    Raises what loading and running raise (BundleError, Unavailable, ...); InputError for an unknown role;
    CheckFailed if the process was killed, as it is when memory runs out, crashed, or took over 300 s.
    """
    if role not in ROLES:
        raise InputError(f"role {role!r} is unknown", did_you_mean(role, ROLES))
    command = [sys.executable, "-c", MAIN, str(bundle), target, role]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, errors="replace", timeout=SECONDS, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise CheckFailed(
            f"engine {target} took over {SECONDS} s to load and run {RUNS} times",
            "free memory, stop other programs",
        ) from error
    if done.returncode < 0:
        raise _killed(-done.returncode, target)
    return _answer(done, command)


def _killed(number: int, target: str) -> CheckFailed:
    if number == signal.SIGKILL:
        return CheckFailed(
            f"the process of engine {target} was killed, most likely because memory ran out",
            "free memory, use a machine with more of it, or export with a smaller --batch",
        )
    return CheckFailed(f"the process of engine {target} ended: {signal.strsignal(number)}", COMPILE_AGAIN)


def _answer(done: subprocess.CompletedProcess[str], command: list[str]) -> Footprint:
    lines = done.stdout.splitlines()
    if not lines or not lines[-1].startswith("{"):  # a traceback: an error that has no class of ours
        reason = (done.stderr.strip() or "it said nothing").splitlines()[-1]
        raise CheckFailed(f"measuring memory failed: {reason}", f"see it whole: {shlex.join(command)}")
    answer: dict[str, Any] = json.loads(lines[-1])
    if "error" in answer:
        kind: type[SubtuneError] = getattr(errors, answer["error"])
        raise kind(answer["message"], answer["hint"])
    return Footprint(**answer)


def _measured(bundle: Path, target: str, role: str) -> Footprint:
    start = _memory("VmRSS")
    opened = open_bundle(bundle)
    engine = load_engine(opened, target, role)
    pictures = opened.manifest.batch or fewest_pictures(engine_target(opened, target))
    rng, spec = np.random.default_rng(0), opened.manifest.input
    for _ in range(RUNS):
        engine.run(rng.standard_normal((pictures, *spec.shape), dtype=np.float32))
    return Footprint(engine_bytes(opened, target, role), _memory("VmHWM"), start)


def engine_bytes(bundle: Bundle, target: str, role: str) -> int:
    """Size of the files that a role's engine is loaded from, the recipe aside."""
    files = [bundle.path / name for name in engine_files(bundle.manifest.engines[target], role)]
    return sum(path.stat().st_size for path in files if path.name != RECIPE)


def _memory(key: str) -> int | None:
    """Bytes under `key` of /proc/self/status; elsewhere the peak so far, whatever the key.

    Linux has that peak too, but a process starts there with the one of its parent.
    """
    if sys.platform == "linux":
        return kilobytes(Path("/proc/self/status"), key)
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak << 10


def main(arguments: list[str]) -> None:
    """Print the footprint, or the error, of BUNDLE TARGET ROLE."""
    bundle, target, role = arguments
    try:
        print(json.dumps(asdict(_measured(Path(bundle), target, role))))
    except SubtuneError as error:
        told = {"error": type(error).__name__, "message": error.message, "hint": error.hint}
        print(json.dumps(told))
        sys.exit(error.exit_status)


if __name__ == "__main__":
    main(sys.argv[1:])
