"""The version, in the one place that setup.cfg and `onnxq --version` both read."""

__all__ = ["__version__"]

__version__ = "0.1.0"
