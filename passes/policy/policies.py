"""The policy: layer -> (weight scheme, activation scheme, smoothing). The one thing that a search
returns and the one thing that quantizing passes obey. Excluding a layer is the policy `float` for it.

A scheme as text: `float`, `int8`, `int4:block32`, `uint8:tensor:asym`, `int8:channel`, `int8:dynamic`,
`gse6`, `gse4:block16`, `gse8:block32:paper`, `tcq3`; passes/formats/ has the formats.
"""

from __future__ import annotations

import csv
import dataclasses
import io
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, cast

from passes.core.errors import PolicyError
from passes.core.fields import check_fields
from passes.formats import FLOAT, Scheme, format_of
from passes.graph.jsontext import read_json
from passes.graph.layers import Layer

__all__ = ["FLOAT", "POLICY_KEY", "LayerPolicy", "Policy", "Scheme", "Site", "load_policy"]

Site = Literal["none", "input", "output"]
# The entry of a model's metadata that holds the policy it was quantized by.
POLICY_KEY = "onnxq.policy"


@dataclass(frozen=True)
class LayerPolicy:
    """What happens to one layer: its weights, its activations (inputs and output), its smoothing."""

    weights: Scheme = FLOAT
    activations: Scheme = FLOAT
    smooth: Site = "none"

    def __post_init__(self) -> None:
        check_fields(self, "policy of a layer", PolicyError)

    @property
    def is_float(self) -> bool:
        return self.weights.is_float and self.activations.is_float

    @property
    def is_simulated(self) -> bool:
        """Whether activations are rounded at run time, in float."""
        return not self.activations.is_float and format_of(self.activations).simulation is not None

    @property
    def bit_product(self) -> int:
        """Bit operations of one multiply-accumulate (SMPQ): weight bits x activation bits, float as 32."""
        return self.weights.bits * self.activations.bits

    def to_json(self) -> dict[str, str]:
        entry = {"weights": str(self.weights), "activations": str(self.activations)}
        return entry | ({"smooth": self.smooth} if self.smooth != "none" else {})

    @classmethod
    def from_json(cls, data: Mapping[str, str]) -> LayerPolicy:
        unknown = set(data) - {"weights", "activations", "smooth"}
        if unknown:
            raise PolicyError(f"unknown key '{min(unknown)}'; known: weights, activations, smooth")
        smooth = data.get("smooth", "none")
        if smooth not in ("none", "input", "output"):
            raise PolicyError(f"smooth is '{smooth}'; it must be none, input or output")
        weights, activations = (data.get(key, "float") for key in ("weights", "activations"))
        if not isinstance(weights, str) or not isinstance(activations, str):
            raise PolicyError("schemes are texts such as int8:channel")
        return cls(Scheme.parse(weights), Scheme.parse(activations), cast(Site, smooth))


@dataclass(frozen=True)
class Policy:
    """Layer name -> LayerPolicy. A layer that is not named is float."""

    layers: Mapping[str, LayerPolicy] = field(default_factory=dict)

    @classmethod
    def uniform(cls, layers: Iterable[Layer | str], weights: Scheme, activations: Scheme = FLOAT) -> Policy:
        names = (layer if isinstance(layer, str) else layer.name for layer in layers)
        return cls({name: LayerPolicy(weights, activations) for name in names})

    def __getitem__(self, name: str) -> LayerPolicy:
        return self.layers.get(name, LayerPolicy())

    def __iter__(self) -> Iterator[str]:
        return iter(self.layers)

    def __len__(self) -> int:
        return len(self.layers)

    def set(self, names: Iterable[str], choice: LayerPolicy) -> Policy:
        """A copy in which the named layers have `choice`."""
        return Policy({**self.layers, **dict.fromkeys(names, choice)})

    def exclude(self, names: Iterable[str]) -> Policy:
        """A copy in which the named layers stay float."""
        return self.set(names, LayerPolicy())

    def smoothed(self, names: Iterable[str], site: Site) -> Policy:
        """A copy that records smoothing at `site` for the named layers."""
        chosen = set(names)
        return Policy(
            {
                name: dataclasses.replace(entry, smooth=site) if name in chosen else entry
                for name, entry in self.layers.items()
            }
        )

    @property
    def quantized(self) -> list[str]:
        """Names of the layers that are not float."""
        return [name for name, choice in self.layers.items() if not choice.is_float]

    def check_names(self, layers: Iterable[Layer]) -> None:
        """Raises PolicyError for a name that is no layer of the model."""
        known = {layer.name for layer in layers}
        unknown = [name for name in self.layers if name not in known]
        if unknown:
            raise PolicyError(
                f"the policy names {len(unknown)} layer(s) that the model lacks, first '{unknown[0]}'; "
                "it was written for another model, or for this one before simplify or fold"
            )

    def to_json(self) -> dict[str, object]:
        return {"version": 1, "layers": {name: choice.to_json() for name, choice in self.layers.items()}}

    @classmethod
    def from_json(cls, data: object, where: str = "policy") -> Policy:
        layers = data.get("layers") if isinstance(data, dict) else None
        if not isinstance(layers, dict):
            raise PolicyError(f'{where}: is no policy; it must be {{"layers": {{NAME: {{"weights": ...}}}}}}')
        parsed: dict[str, LayerPolicy] = {}
        for name, entry in layers.items():
            if not isinstance(entry, dict):
                raise PolicyError(f"{where}: layer '{name}': expected an object with weights and activations")
            try:
                parsed[name] = LayerPolicy.from_json(entry)
            except PolicyError as error:
                raise PolicyError(f"{where}: layer '{name}': {error}") from None
        return cls(parsed)

    def to_csv(self) -> str:
        """One line a layer: layer,weights,activations,smooth."""
        buffer = io.StringIO()
        writer = csv.writer(buffer, lineterminator="\n")
        writer.writerow(["layer", "weights", "activations", "smooth"])
        for name, entry in self.layers.items():
            writer.writerow([name, str(entry.weights), str(entry.activations), entry.smooth])
        return buffer.getvalue()


def load_policy(path: str | Path) -> Policy:
    """A policy from a .json or .csv file. Raises PolicyError naming the file and the layer."""
    file = Path(path)
    if file.suffix != ".csv":
        return Policy.from_json(read_json(file, "the policy", PolicyError), str(file))
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not a text file"
        raise PolicyError(f"{file}: the policy cannot be read ({reason})") from None
    try:
        rows = list(csv.DictReader(io.StringIO(text), restkey="one more column"))
    except csv.Error as error:
        raise PolicyError(f"{file}: is not CSV ({error})") from None
    entries: dict[str, dict[str, str]] = {}
    for row in rows:
        name = row.pop("layer", "")
        if name in entries:
            raise PolicyError(f"{file}: names the layer '{name}' twice; keep one line of it")
        entries[name] = {key: value for key, value in row.items() if value}
    return Policy.from_json({"layers": entries}, str(file))
