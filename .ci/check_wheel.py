"""Say what is wrong with a built wheel: a package that is missing, or a folder that does not belong in it.

python .ci/check_wheel.py dist/onnxq-*.whl
"""

from __future__ import annotations

import sys
import zipfile
from pathlib import Path, PurePosixPath

PACKAGES = {"onnxq", "passes", "runtime_ops"}


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
        if path.suffix in {".py", ".html"} or path.name == "py.typed"
    }
    return [f"{name}: does not belong in the wheel" for name in sorted(strangers)] + [
        f"{name}: missing from the wheel" for name in sorted(wanted - names)
    ]


def main() -> int:
    found = problems(Path(sys.argv[1]), Path(__file__).resolve().parent.parent)
    for line in found:
        sys.stderr.write(f"{line}\n")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
