"""Builds `_load.pyx` the first time it is needed (and again when it has changed) and imports it.

Nothing is installed: the module lands in ``build/bench/``, which is ignored by git. A C compiler and Cython are needed,
as for pylvs itself.
"""

from __future__ import annotations

import fcntl
import importlib.util
import sys
import sysconfig
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "bench" / "_load.pyx"
FOLDER = ROOT / "build" / "bench"
TARGET = FOLDER / f"_load{sysconfig.get_config_var('EXT_SUFFIX')}"


def build() -> Path:
    """Compile the extension if it is missing or older than its source; return where it is."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    with (FOLDER / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if TARGET.exists() and TARGET.stat().st_mtime > SOURCE.stat().st_mtime:
            return TARGET
        from Cython.Build import cythonize
        from setuptools import Distribution, Extension

        print("bench: building the load extension …", file=sys.stderr, flush=True)
        extension = Extension("_load", [str(SOURCE)], extra_compile_args=["-O3", "-Wall"])
        modules = cythonize([extension], build_dir=str(FOLDER), quiet=True)
        command = Distribution({"name": "bench", "ext_modules": modules}).get_command_obj("build_ext")
        command.build_lib = str(FOLDER)
        command.build_temp = str(FOLDER / "temp")
        command.ensure_finalized()
        command.run()
    return TARGET


def load() -> ModuleType:
    """The extension module, built if need be."""
    name = "bench._load"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, build())
        if spec is None or spec.loader is None:
            raise ImportError(f"cannot load {TARGET}")
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        spec.loader.exec_module(module)
    return sys.modules[name]


if __name__ == "__main__":
    print(build())
