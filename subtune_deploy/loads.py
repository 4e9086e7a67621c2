"""Raw samples of latency over several loads of the same engines.

    measure_loads(load, fresh_batches(spec, 1)).ratio("graph")     # load: makes engines ready, by name

Where an engine's weights and buffers come to lie is decided when it is loaded, and stays so: on a small network two
loads of one file differ by more than an interval of either tells. So each load is one observation, and the interval is
of several.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from itertools import count

from .backends.base import Batch
from .measure import ADAPTIVE, Clock, Engines, Measurement, Progress, Protocol, measure, settled

FEW = 2
"""Rounds that are one observation of a load; its own interval is not asked for."""
STEP = 3
"""Loads more before all are looked at again: with fewer, an interval of order statistics leaves out no more."""


def measure_loads(
    load: Callable[[], Engines],
    batches: Sequence[Batch],
    protocol: Protocol = ADAPTIVE,
    *,
    hot: bool = False,
    clock: Clock = time.perf_counter,
    progress: Progress | None = None,
) -> Measurement:
    """As `measure`, with what `load` gives for each of the protocol's loads, an equal part of the time for each.

    More follow while time is left and the precision is not reached. Engines of one load are let go before the next.
    What takes longer to load than all the time to measure, as where a provider builds its engine then, is loaded once.
    Raises what `load` does, too.
    """
    start, parts = clock(), list[Measurement]()

    def tell(share: float) -> None:
        if progress is not None:
            done = (len(parts) + share) / protocol.loads
            progress(min(done, (clock() - start) / protocol.seconds, 1.0))

    run, once = partial(measure, batches=batches, hot=hot, clock=clock), replace(protocol, loads=1)
    part = replace(once, seconds=protocol.seconds / protocol.loads)
    with only_what_is_new_collected():
        engines = load()
        if protocol.loads == 1 or clock() - start > protocol.seconds:
            return replace(run(engines, protocol=once, progress=progress), protocol=protocol)
        for enough in count(protocol.loads, STEP):
            while len(parts) < enough:
                parts.append(run(engines or load(), protocol=part, progress=tell, fewest=FEW))
                engines = {}
                gc.collect()  # of a library whose engines refer to themselves
            whole = _joined(parts, protocol)
            if whole.settled or clock() - start >= protocol.seconds:
                break
    return whole


@contextmanager
def only_what_is_new_collected() -> Iterator[None]:
    """Else a collection looks at all that PyTorch holds, for half a second."""
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def _joined(parts: Sequence[Measurement], protocol: Protocol) -> Measurement:
    names, timed = parts[0].samples, parts[0].device
    samples = {name: tuple(s for part in parts for s in part.samples[name]) for name in names}
    device = {name: tuple(s for part in parts for s in part.device[name]) for name in timed}
    loads = tuple(len(next(iter(part.samples.values()))) for part in parts)
    return Measurement(protocol, samples, settled(samples, protocol.precision, loads), device, loads)
