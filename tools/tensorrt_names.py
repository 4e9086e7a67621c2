#!/usr/bin/env python3
"""Write tests/data/tensorrt_names.json: what the real bindings of TensorRT hold, for a test to check our code against.

    python tools/tensorrt_names.py            downloads the wheels of VERSIONS with pip and writes the listing

The bindings are one extension module that is linked against TensorRT itself, whose libraries no wheel on PyPI holds.
To import it, each of them gets a stand-in, made by gcc, whose functions return 0: defining the Python classes needs
none of them. Needs Linux on x86-64, gcc, binutils and pip.
"""

from __future__ import annotations

import ctypes
import importlib.util
import json
import re
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

VERSIONS = ("10.13.0.35", "10.16.1.11", "11.4.0.106")
PACKAGE = "tensorrt-cu12-bindings"
OUT = Path(__file__).parents[1] / "tests" / "data" / "tensorrt_names.json"

Listing = dict[str, dict[str, str]]
"""Class ("" is the module, nested ones are "ILogger.Severity") -> name -> class of its value or result, or "".

A class holds its own names; under "" the class that it inherits others from, or "".
"""


def main() -> None:
    if len(sys.argv) == 2:  # in a process of its own: two versions do not fit in one
        print(json.dumps(listed(imported(Path(sys.argv[1])))))
        return
    listings = {version: bindings(version) for version in VERSIONS}
    OUT.parent.mkdir(exist_ok=True)
    OUT.write_text(compact(listings), encoding="utf-8")
    classes = ", ".join(f"{version} {len(listing)}" for version, listing in listings.items())
    print(f"{OUT}: {OUT.stat().st_size} bytes, classes: {classes}")


def bindings(version: str) -> Listing:
    """The listing of one release, from its wheel."""
    with tempfile.TemporaryDirectory() as folder:
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", folder]
        subprocess.run([*pip, f"{PACKAGE}=={version}"], check=True)
        with zipfile.ZipFile(next(Path(folder).glob("*.whl"))) as wheel:
            wheel.extractall(folder)
        extension = next(Path(folder).glob("*/tensorrt.so"))
        done = subprocess.run([sys.executable, __file__, str(extension)], stdout=subprocess.PIPE, check=True)
    listing: Listing = json.loads(done.stdout)
    return listing


def members(listing: Listing, kind: str) -> dict[str, str]:
    """Own and inherited names of a class, in a listing."""
    own = dict(listing.get(kind, {}))
    base = own.pop("", "")
    return {**members(listing, base), **own} if base else own


def imported(extension: Path) -> Any:
    """The extension module, on stand-ins for the libraries that it needs and nobody has."""
    dynamic = _output("readelf", "--dynamic", "--wide", str(extension))
    symbols = _output("nm", "--dynamic", "--undefined-only", "--format=posix", str(extension))
    functions = re.findall(r"^((?:create|get|init)\w+) U", symbols, re.MULTILINE)
    source = extension.with_name("stand_in.c")
    source.write_text("".join(f"void *{name}(void) {{ return 0; }}\n" for name in functions))
    for library in re.findall(r"\[(libnv\w+\.so\.\d+)\]", dynamic):
        path = extension.with_name(library)
        subprocess.run(["gcc", "-shared", "-fPIC", f"-Wl,-soname,{library}", "-o", path, source], check=True)
        ctypes.CDLL(str(path), mode=ctypes.RTLD_GLOBAL)
    spec = importlib.util.spec_from_file_location("tensorrt", extension)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def listed(module: Any) -> Listing:
    """The public names of a module of bindings and of its classes."""
    found: Listing = {"": {}}

    def visit(holder: Any, path: str) -> None:
        for name in sorted(name for name in vars(holder) if not name.startswith("_")):
            value = getattr(holder, name)
            inside = f"{path}.{name}" if path else name
            found[path][name] = inside if isinstance(value, type) else result(value)
            if isinstance(value, type) and inside not in found and "tensorrt" in value.__module__:
                base = value.__mro__[1]
                found[inside] = {"": base.__qualname__ if "tensorrt" in base.__module__ else ""}
                visit(value, inside)

    visit(module, "")
    return found


def result(value: Any) -> str:
    """The class of an enum's member; of what a method returns, or a property holds, as its documentation says."""
    if hasattr(type(value), "__members__"):
        return type(value).__qualname__
    text = (value.fget.__doc__ if isinstance(value, property) and value.fget else value.__doc__) or ""
    returned = re.search(r"->\s*(?:[a-z]\w*\.)*([A-Z][\w.]*)", text.split("\n\n")[0])
    return returned[1] if returned else ""


def compact(listings: dict[str, Listing]) -> str:
    """JSON with one class a line, so that a newer release shows as a small difference; see `read`."""
    packed = {
        version: {
            kind: " ".join(f"{name}:{of}" if of else name for name, of in names.items())
            for kind, names in sorted(listing.items())
        }
        for version, listing in listings.items()
    }
    return json.dumps(packed, indent=0) + "\n"


def read() -> dict[str, Listing]:
    """The listings in the file, by version."""
    packed = json.loads(OUT.read_text(encoding="utf-8"))
    return {
        version: {
            kind: dict(word.partition(":")[::2] for word in words.split(" "))
            for kind, words in listing.items()
        }
        for version, listing in packed.items()
    }


def _output(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


if __name__ == "__main__":
    main()
