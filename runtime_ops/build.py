"""Build the C++ library with CMake: in place for a checkout, into the wheel for an installation.

    python -m runtime_ops.build      # beside the Python sources, with one line that says what was done

An installation never fails because of it: where CMake, a compiler or ONNX Runtime's headers are missing, one
line says so and it goes on without the library. ONNXQ_NO_NATIVE=1 does not even try; ONNXQ_REQUIRE_NATIVE=1
makes the failure one of the installation. CMake's own variables work as always (CXX, CXXFLAGS), and
ONNXQ_ORT_INCLUDE names a folder with the headers.

setuptools loads this file alone, before anything is installed: nothing but the standard library is imported,
and setuptools only where it is running already.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

__all__ = ["LIBRARY_NAME", "REASON_NAME", "BuildError", "build"]

_PREFIX = "" if sys.platform in ("win32", "cygwin") else "lib"
_SUFFIX = {"win32": ".dll", "cygwin": ".dll", "darwin": ".dylib"}.get(sys.platform, ".so")
LIBRARY_NAME = f"{_PREFIX}onnxq_ops{_SUFFIX}"
# An installation that had to go on without the library leaves its reason here, for `onnxq doctor`.
REASON_NAME = "not_built.txt"
_PACKAGE = Path(__file__).resolve().parent


class BuildError(RuntimeError):
    """One sentence: why there is no library."""


def _run(command: list[str], folder: Path) -> None:
    """Run a step of CMake. What it has to say goes into the error, the interesting part of it."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    except OSError as error:
        raise BuildError(f"{command[0]} cannot be run ({error.strerror})") from error
    if done.returncode == 0:
        return
    reason = folder / "reason.txt"
    if reason.is_file():
        raise BuildError(reason.read_text(encoding="utf-8").strip())
    lines = [line.strip() for line in (done.stdout + done.stderr).splitlines() if line.strip()]
    if any("CMAKE_CXX_COMPILER" in line or "CMAKE_MAKE_PROGRAM" in line for line in lines):
        raise BuildError("there is no C++ compiler")
    telling = [line for line in lines if "error" in line.lower()] or lines or ["no output"]
    raise BuildError(f"CMake failed: {telling[0]}")


def build(target: Path) -> Path:
    """Build the library and put it into the folder `target`; gives its path. Raises BuildError."""
    source = _PACKAGE / "native"
    if not (source / "CMakeLists.txt").is_file():
        raise BuildError(f"{source} does not hold the C++ sources")
    cmake = shutil.which("cmake")
    if cmake is None:
        raise BuildError("CMake is not installed")
    with tempfile.TemporaryDirectory(prefix="onnxq-") as name:
        folder = Path(name)
        configure = [cmake, "-S", str(source), "-B", str(folder), "-DCMAKE_BUILD_TYPE=Release"]
        if include := os.environ.get("ONNXQ_ORT_INCLUDE"):
            configure.append(f"-DONNXQ_ORT_INCLUDE={Path(include).resolve()}")
        # Ninja finds Visual Studio's compiler only in its own prompt; the default generator always does.
        if sys.platform != "win32" and shutil.which("ninja") and "CMAKE_GENERATOR" not in os.environ:
            configure += ["-G", "Ninja"]
        _run(configure, folder)
        _run([cmake, "--build", str(folder), "--config", "Release", "--parallel", "2"], folder)
        built = next(folder.rglob(LIBRARY_NAME), None)
        if built is None:
            raise BuildError(f"CMake made no {LIBRARY_NAME}")
        target.mkdir(parents=True, exist_ok=True)
        # A process may have the old one loaded: a new file takes its place, nothing is written into it.
        fresh = target / f"{LIBRARY_NAME}.{os.getpid()}"
        shutil.copy(built, fresh)
        try:
            fresh.replace(target / LIBRARY_NAME)
        except OSError as error:
            fresh.unlink()
            raise BuildError(f"{target / LIBRARY_NAME} is in use and cannot be replaced") from error
        (target / REASON_NAME).unlink(missing_ok=True)
    return target / LIBRARY_NAME


def _attempt(target: Path) -> bool:
    """Build for an installation: True where the library is there now."""
    try:
        if os.environ.get("ONNXQ_NO_NATIVE", "0") not in ("", "0"):
            raise BuildError("ONNXQ_NO_NATIVE is set")
        build(target)
    except BuildError as error:
        if os.environ.get("ONNXQ_REQUIRE_NATIVE", "0") not in ("", "0"):
            raise
        target.mkdir(parents=True, exist_ok=True)
        (target / REASON_NAME).write_text(f"{error}\n", encoding="utf-8")
        sys.stderr.write(f"onnxq is installed without its C++ library, which makes loading slower: {error}\n")
        return False
    return True


def main() -> int:
    try:
        path = build(_PACKAGE)
    except BuildError as error:
        sys.stderr.write(f"not built: {error}\n")
        return 1
    sys.stdout.write(f"built {path}\n")
    return 0


if "setuptools" in sys.modules:  # the commands that setup.cfg names
    from setuptools.command.build_py import build_py

    try:
        from setuptools.command.bdist_wheel import bdist_wheel
    except ImportError:  # setuptools before 70.1
        from wheel.bdist_wheel import bdist_wheel

    class BuildPy(build_py):  # type: ignore[misc]
        """Copies the packages, then builds the library beside them."""

        def run(self) -> None:
            super().run()
            if getattr(self, "editable_mode", False):
                _attempt(_PACKAGE)
                return
            target = Path(self.build_lib) / _PACKAGE.name
            for name in (LIBRARY_NAME, REASON_NAME):  # of an earlier build in the same tree
                (target / name).unlink(missing_ok=True)
            self.distribution.onnxq_native = _attempt(target)

    class BdistWheel(bdist_wheel):  # type: ignore[misc]
        """A wheel for this platform and any Python 3 with the library, for any platform without it."""

        def run(self) -> None:
            if not self.skip_build:
                self.run_command("build")
            if getattr(self.distribution, "onnxq_native", False):
                self.root_is_pure = False
                self.distribution.has_ext_modules = lambda: True
            super().run()

        def get_tag(self) -> tuple[str, str, str]:
            python, abi, platform = super().get_tag()
            return (python, abi, platform) if self.root_is_pure else ("py3", "none", platform)


if __name__ == "__main__":
    sys.exit(main())
