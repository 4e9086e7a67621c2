"""How long importing the edge runtime takes, beside the NumPy that it needs, in fresh interpreters.

    python benchmarks/import_time.py [--count 30]

Both alternate; the clock is that of the process, from before the import until after it. Every time in seconds is in
benchmarks/results/import_time.json, the table in benchmarks/results/import_time.md.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import click

from subtune_deploy.environment import describe
from subtune_deploy.result_tables import markdown
from subtune_deploy.stats import median

RESULTS = Path(__file__).parent / "results"
MODULES = ("numpy", "subtune_deploy.runtime")
CODE = "from time import perf_counter as now; start = now(); import {}; print(now() - start)"
LIMIT = 0.2
"""Seconds that the runtime may take."""


@click.command()
@click.option("--count", type=click.IntRange(1), default=30, show_default=True, help="Of each.")
def main(count: int) -> None:
    """Measure, write; status 1 above the limit."""
    times: dict[str, list[float]] = {name: [] for name in MODULES}
    for _ in range(count):
        for name in MODULES:
            times[name].append(seconds(name))
    host = describe()
    (RESULTS / "import_time.json").write_text(json.dumps({"unit": "s", "times": times, "host": host}) + "\n")
    rows = [[name, f"{1e3 * median(found):.0f} ms"] for name, found in times.items()]
    text = (
        f"`python benchmarks/import_time.py`: median of {count} fresh interpreters, Python {host['python']} on "
        f"{host['cores']} cores of {host['cpu']}.\n\n"
    ) + markdown(("import", "takes"), rows)
    (RESULTS / "import_time.md").write_text(text)
    click.echo(text)
    if median(times[MODULES[-1]]) > LIMIT:
        raise SystemExit(1)


def seconds(module: str) -> float:
    """Of one import."""
    done = subprocess.run([sys.executable, "-c", CODE.format(module)], capture_output=True, check=True)
    return float(done.stdout)


if __name__ == "__main__":
    main()
