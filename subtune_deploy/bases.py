"""The backbone alone, compiled and looked at once for all bundles in which its graph is the same file.

bases = Bases(run / "cache" / "base")
bundle = compile_bundle(bundle, target, make=bases.maker(bundle))
time_bundle(bundle, target.name, look=bases.looker(bundle))
"""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

from .backends import get_backend
from .backends.base import Progress, Target, silent
from .bundle import Bundle, Compile
from .footprint import Footprint, Look, footprint
from .spec import LONE_GRAPH
from .staging import PREFIX, staged

BOTH = "torch"
"""A backend whose one file answers for both roles: it is another one in each bundle."""


class Bases:
    """Engines lie in `folder`, also for a process that goes on where this one was killed; footprints are remembered."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._footprints: dict[str, Footprint] = {}

    def maker(self, bundle: Bundle) -> Compile:
        """Compiles as the target's backend does, but the base of `bundle` only if no bundle before had the same."""

        def make(source: Path, folder: Path, role: str, target: Target, progress: Progress = silent) -> None:
            backend = get_backend(target.backend)
            if role != "base" or target.backend == BOTH:
                backend.compile(source, folder, role, target, progress)
                return
            kept = self.folder / self._key(bundle, target.name)
            if not kept.is_dir():
                with staged(kept) as made:
                    backend.compile(source, made, role, target, progress)
            shutil.copytree(kept, folder, dirs_exist_ok=True)

        return make

    def looker(self, bundle: Bundle) -> Look:
        """Looks at the base's memory only if no bundle before had the same."""

        def look(path: Path, target: str, role: str) -> Footprint:
            if role != "base" or bundle.manifest.engines[target].backend == BOTH:
                return footprint(path, target, role)
            key = self._key(bundle, target)
            if key not in self._footprints:
                self._footprints[key] = footprint(path, target, role)
            return self._footprints[key]

        return look

    def remove(self) -> None:
        """All engines, at once for whoever looks into the folder meanwhile or after a kill."""
        if self.folder.is_dir():
            gone = self.folder.with_name(f"{PREFIX}{self.folder.name}")
            shutil.rmtree(gone, ignore_errors=True)
            self.folder.rename(gone)
            shutil.rmtree(gone, ignore_errors=True)

    def _key(self, bundle: Bundle, target: str) -> str:
        digests = [each for name, each in bundle.manifest.files.items() if name.startswith(LONE_GRAPH)]
        return f"{hashlib.sha256(' '.join(digests).encode()).hexdigest()[:16]}_{target}"
