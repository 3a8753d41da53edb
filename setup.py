"""Extension list and build modes; everything else is in pyproject.toml.

``PYLVS_BUILD`` selects the mode: ``release`` (default), ``debug`` (assertions, -Og), ``asan`` (AddressSanitizer and
UndefinedBehaviorSanitizer) or ``coverage`` (gcov, with line numbers of the .pxd and .pyx files).
"""

import os
from pathlib import Path

from Cython.Build import cythonize
from setuptools import Extension, setup

MODES = {
    "release": ["-O3", "-DNDEBUG"],
    "debug": ["-Og", "-g"],
    "asan": ["-O1", "-g", "-fno-omit-frame-pointer", "-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"],
    "coverage": ["-O0", "-g", "--coverage"],
}
mode = os.environ.get("PYLVS_BUILD", "release")
if mode not in MODES:
    raise SystemExit(f"PYLVS_BUILD={mode}: unknown build mode; use one of {', '.join(MODES)}")

# what Cython generates compares signed with unsigned and drops const; the .pyx files are ours, those habits are not
flags = [
    *MODES[mode], "-D_GNU_SOURCE", "-Wall", "-Wno-unused-function", "-Wno-sign-compare", "-Wno-discarded-qualifiers",
    "-Wno-cpp",
]
link = [flag for flag in MODES[mode] if flag.startswith(("-fsanitize", "--coverage"))]

MODULES = [
    "pylvs.forward._fastpath",
    "pylvs.ports.af_packet",
    "pylvs.ports.memory",
    "pylvs.ports.port",
    "pylvs.worker",
]



def outdated() -> bool:
    """Is any declaration newer than any generated file? Cython does not follow ``from package cimport module``."""
    newest = max(path.stat().st_mtime for path in Path("pylvs").rglob("*.pxd"))
    generated = [Path(f"build/{mode}-c", name.replace(".", "/") + ".c") for name in MODULES]
    return any(not path.exists() or path.stat().st_mtime < newest for path in generated)


setup(
    ext_modules=cythonize(
        [
            Extension(name, [name.replace(".", "/") + ".pyx"], extra_compile_args=flags, extra_link_args=link)
            for name in MODULES
        ],
        build_dir=f"build/{mode}-c",
        force=outdated(),
        emit_linenums=mode == "coverage",
        compiler_directives={
            "language_level": 3,
            "boundscheck": False,
            "wraparound": False,
            "cdivision": True,
            "initializedcheck": False,
            "embedsignature": True,
            "freethreading_compatible": True,
        },
    ),
)
