"""Say what is wrong with a built wheel: a file that is missing, or a folder that does not belong in it.

A wheel with the C++ library is for one platform, one without for any; ONNXQ_REQUIRE_NATIVE=1 wants the first.

python .ci/check_wheel.py dist/onnxq-*.whl
"""

from __future__ import annotations

import os
import sys
import zipfile
from pathlib import Path, PurePosixPath

PACKAGES = {"onnxq", "passes", "runtime_ops"}
SOURCES = {".py", ".html", ".cc", ".h", ".map", ".cmake"}
LIBRARIES = {"runtime_ops/libonnxq_ops.so", "runtime_ops/libonnxq_ops.dylib", "runtime_ops/onnxq_ops.dll"}


def problems(wheel: Path, root: Path) -> list[str]:
    """Every difference between the wheel and the packages of the checkout that matters to a user."""
    with zipfile.ZipFile(wheel) as archive:
        names = {n for n in archive.namelist() if not n.endswith("/")}
    tops = {PurePosixPath(n).parts[0] for n in names}
    strangers = {t for t in tops if t not in PACKAGES and not t.endswith(".dist-info")}
    wanted = {
        path.relative_to(root).as_posix()
        for package in PACKAGES
        for path in (root / package).rglob("*")
        if (path.suffix in SOURCES or path.name in {"py.typed", "CMakeLists.txt"})
        and root / "runtime_ops" / "native" / "test" not in path.parents
    }
    found = [f"{name}: does not belong in the wheel" for name in sorted(strangers)]
    found += [f"{name}: missing from the wheel" for name in sorted(wanted - names)]
    native = bool(LIBRARIES & names)
    if native == wheel.stem.endswith("-any"):
        found.append(f"{wheel.name}: {'holds' if native else 'does not hold'} the C++ library")
    if not native and os.environ.get("ONNXQ_REQUIRE_NATIVE", "0") not in ("", "0"):
        found.append("the C++ library is missing from the wheel")
    return found


def main() -> int:
    found = problems(Path(sys.argv[1]), Path(__file__).resolve().parent.parent)
    for line in found:
        sys.stderr.write(f"{line}\n")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
