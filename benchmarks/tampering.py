"""A thousand corruptions of bundles, archives and packs, and what the commands of a device say to each.

    python benchmarks/tampering.py [--count 1000] [--seed 0]

Each trial takes a good victim, changes it in one way at random, and gives it to the command that would take it in:

    bundle          verify, then run; hashes as they were, so that any change must show
    forged bundle   verify; the changed manifest carries the right checksum, as one who knows the format would write it
    signed bundle   verify --key; whoever changed it gave every file its right hash, but has not the key
    tar             unpack
    signed tar      unpack --key; made anew from altered files, with the old signature, another, or none
    pack            graft

Refused is: status 1 or 2, one error line and one hint line, no file left or changed anywhere. A trial is given ten
seconds, 8 GB of memory and files of 1 GB. What only a signature can notice (a picture's mean, a label, a weight, each
with its hash made anew) is not asked of unsigned bundles; `tests/test_tampering.py` shows that they accept it. The
table is benchmarks/results/tampering.md.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import click

ROOT = Path(__file__).parent.parent
sys.path.append(str(ROOT / "tests"))

from tampering_archives import PACKS, SIGNED_TARS, TARS  # noqa: E402
from tampering_forgeries import FORGERIES, UNSIGNED  # noqa: E402
from tampering_kinds import FILES, MANIFESTS, Way, Workshop, make_workshop  # noqa: E402
from tiny_shipping import tree  # noqa: E402

from subtune_deploy.cli import main as command  # noqa: E402
from subtune_deploy.result_tables import markdown  # noqa: E402

KINDS: Mapping[str, Mapping[str, Way]] = {
    "bundle": {**FILES, **MANIFESTS},
    "forged bundle": FORGERIES,
    "signed bundle": UNSIGNED,
    "tar": TARS,
    "signed tar": SIGNED_TARS,
    "pack": PACKS,
}
RESULTS = ROOT / "benchmarks" / "results" / "tampering.md"
SECONDS = 10
"""Longer than this is a hang."""

REFUSED = ("refused (2)", "refused (1)")
SAME = "same answers"
_TOLD = ("error:", "hint: ")


@dataclass(frozen=True)
class Outcome:
    """What a trial ended in. `run`: what the command run made of a bundle, where it was tried too."""

    victim: str
    kind: str
    verdict: str
    told: str
    run: str = ""

    @property
    def good(self) -> bool:
        """Refused, and no answers but the right ones of an engine that was left alone."""
        return self.verdict in REFUSED and self.run in ("", SAME, *REFUSED)


class Hung(BaseException):
    """A command took longer than `SECONDS`."""


@dataclass(frozen=True)
class Said:
    """What a command answered; `status` -1 where it did not end by itself."""

    status: int
    out: str
    err: str
    fault: str = ""

    @property
    def verdict(self) -> str:
        """As in the table."""
        lines = self.err.splitlines()
        told = (
            [line[:6] for line in lines if line[:6] in _TOLD] == [*_TOLD] == [line[:6] for line in lines[-2:]]
        )
        if self.fault:
            return self.fault
        if "--help" in self.err:
            return "usage error"  # the victim was never looked at
        if self.status == 0:
            return "accepted"
        tidy = told and "Traceback" not in self.err and self.status in (1, 2)
        return f"refused ({self.status})" if tidy else "refused untidily"


def say(*arguments: object) -> Said:
    """Run a command of ours in this process, in bounded time."""
    out, err, status, fault = io.StringIO(), io.StringIO(), -1, ""
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            with _time_limit():
                command([str(each) for each in arguments])
        except SystemExit as leaving:
            status = leaving.code if isinstance(leaving.code, int) else -1
        except Hung:
            fault = "hung"
        except BaseException as error:  # noqa: BLE001 - whatever escapes is what we look for
            fault = f"crashed: {type(error).__name__}"
            err.write(f"{type(error).__name__}: {error}")
    return Said(status, out.getvalue(), err.getvalue(), fault)


@contextlib.contextmanager
def _time_limit() -> Iterator[None]:
    def stop(*_: object) -> None:
        raise Hung

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def trial(shop: Workshop, room: Path, victim: str, kind: str, seed: int) -> Outcome:
    """Corrupt a copy of the victim in `room`, an empty folder, and give it to the commands."""
    good = shop.victims[victim]
    copy = room / good.name
    shutil.copytree(good, copy) if good.is_dir() else shutil.copyfile(good, copy)
    (room / "canary").mkdir()
    (room / "canary" / "song.txt").write_text("tweet")
    KINDS[victim][kind](random.Random(seed), copy, shop)
    before, around = tree(room), tree(shop.folder)
    said = say(*shop.arguments(victim, copy, room / "out"))
    verdict, ran = said.verdict, ""
    told = [line for line in said.err.splitlines() if not line.startswith("hint: ")][-1:]
    if victim == "bundle":
        ran = _ran(shop, say("run", copy, shop.picture, "--json"))
    if verdict in REFUSED and (tree(room) != before or tree(shop.folder) != around):
        verdict = "left something"
    return Outcome(victim, kind, verdict, "".join(told), ran)


def _ran(shop: Workshop, said: Said) -> str:
    if said.status != 0 or said.fault:
        return said.verdict
    same = json.loads(said.out)["pictures"][0]["answers"] == shop.answers
    return SAME if same else "OTHER ANSWERS"


def controls(shop: Workshop, folder: Path) -> None:
    """Every victim is taken as it is: otherwise a refusal shows nothing."""
    for victim, good in shop.victims.items():
        said = say(*shop.arguments(victim, good, folder / f"control {victim}"))
        if said.verdict != "accepted":
            raise click.ClickException(f"the good {victim} is not accepted: {said.err or said.fault}")


def plan(count: int, seed: int) -> list[tuple[str, str, int]]:
    """(victim, kind, seed) of each trial: every kind in turn."""
    kinds = [(victim, kind) for victim, each in KINDS.items() for kind in each]
    return [(*kinds[number % len(kinds)], seed * 1_000_000 + number) for number in range(count)]


def summary(outcomes: Sequence[Outcome], command_line: str) -> str:
    """The table of kinds and outcomes, as Markdown."""
    bad = [each for each in outcomes if not each.good]
    verdicts = sorted({each.verdict for each in outcomes} | {*REFUSED}, reverse=True)
    rows = [
        (
            victim,
            kind,
            *_counts([each for each in outcomes if (each.victim, each.kind) == (victim, kind)], verdicts),
        )
        for victim, kinds in KINDS.items()
        for kind in kinds
    ]
    lines = [
        f"`{command_line}`: {len(outcomes)} corruptions, {len(outcomes) - len(bad)} refused as they should be.",
        "",
        f"A bundle that is refused by `verify` was given to `run` too: its column says how often `run` refused, or "
        f"answered as before because the engine's own files were whole. Other answers: "
        f"{sum(each.run == 'OTHER ANSWERS' for each in outcomes)}.",
        "",
        markdown(("what", "corruption", "trials", *verdicts, "run"), rows),
        *(f"\n- {each.victim}, {each.kind}: {each.verdict} {each.run}: {each.told}" for each in bad),
    ]
    return "\n".join(lines) + "\n"


def _counts(outcomes: Sequence[Outcome], verdicts: Sequence[str]) -> tuple[str, ...]:
    found = Counter(each.verdict for each in outcomes)
    ran = Counter("refused" if each.run in REFUSED else each.run for each in outcomes if each.run)
    told = ", ".join(f"{count} {name}" for name, count in sorted(ran.items()))
    return (str(len(outcomes)), *(str(found[verdict]) for verdict in verdicts), told)


# one process for many trials, another where it dies


def work(first: int, count: int, seed: int, folder: Path) -> None:
    """Trials `first` and on, each a JSON line on stdout."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 30, 1 << 30))
    resource.setrlimit(resource.RLIMIT_AS, (8 << 30, 8 << 30))
    shop = Workshop.opened(folder)
    lines = os.fdopen(os.dup(1), "w")
    for number, (victim, kind, own) in list(enumerate(plan(count, seed)))[first:]:
        room = folder.parent / f"room {number}"
        room.mkdir()
        print(json.dumps(vars(trial(shop, room, victim, kind, own))), file=lines, flush=True)
        shutil.rmtree(room, ignore_errors=True)


def all_outcomes(count: int, seed: int, folder: Path) -> list[Outcome]:
    """Every trial's outcome; a process that dies has crashed in the trial it was at."""
    outcomes: list[Outcome] = []
    while len(outcomes) < count:
        arguments = [__file__, "--work", str(len(outcomes)), "--count", str(count), "--seed", str(seed)]
        with subprocess.Popen(
            [sys.executable, *arguments, "--folder", str(folder)], stdout=subprocess.PIPE, text=True
        ) as worker:
            assert worker.stdout is not None
            for line in worker.stdout:
                outcomes.append(Outcome(**json.loads(line)))
                print(f"\r{len(outcomes)} of {count}", end="", file=sys.stderr, flush=True)
        if len(outcomes) < count:
            victim, kind, _ = plan(count, seed)[len(outcomes)]
            outcomes.append(Outcome(victim, kind, f"crashed: status {worker.returncode}", ""))
    print(file=sys.stderr)
    return outcomes


@click.command()
@click.option("--count", default=1000, show_default=True)
@click.option("--seed", default=0, show_default=True)
@click.option("--work", "first", type=int, hidden=True)
@click.option("--folder", type=click.Path(path_type=Path), hidden=True)
def main(count: int, seed: int, first: int | None, folder: Path | None) -> None:
    """A thousand corruptions, and the table of what became of them."""
    if first is not None and folder is not None:
        work(first, count, seed, folder)
        return
    with tempfile.TemporaryDirectory(prefix="tampering-") as temporary:
        shop = make_workshop(Path(temporary, "shop"))
        controls(shop, Path(temporary))
        outcomes = all_outcomes(count, seed, shop.folder)
    line = f"python benchmarks/tampering.py --count {count} --seed {seed}"
    RESULTS.write_text(summary(outcomes, line), encoding="utf-8")
    click.echo(RESULTS.read_text(encoding="utf-8"))
    if not all(each.good for each in outcomes):
        sys.exit(1)


if __name__ == "__main__":
    main()
