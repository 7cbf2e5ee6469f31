"""Options that several commands share, and the layers beneath them: flags win over --config over defaults."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

import click

__all__ = [
    "ByteSize",
    "Duration",
    "absolute_free",
    "calibration_option",
    "config_option",
    "damping_option",
    "data_options",
    "hub_option",
    "json_option",
    "metric_option",
    "models_argument",
    "output_option",
    "resolve_threads",
    "smooth_options",
    "splitted",
    "threads_option",
]

F = TypeVar("F", bound=Callable[..., Any])
_ALIASES = {"model": "models", "mode": "modes"}


def _read_config(path: Path) -> dict[str, Any]:
    from passes.core.errors import UserError
    from passes.graph.jsontext import parse_json

    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not a text file"
        raise UserError(f"{path}: the configuration cannot be read ({reason})") from None
    if path.suffix.lower() == ".toml":
        try:
            import tomllib
        except ModuleNotFoundError:
            raise UserError(
                f"{path}: Python 3.10 cannot read TOML; write the configuration as JSON"
            ) from None
        try:
            return tomllib.loads(text)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{path}: is not TOML ({error})") from None
    found = parse_json(text, str(path))
    if not isinstance(found, dict):
        raise UserError(f'{path}: a configuration is an object of options, as in {{"weights": "int8"}}')
    return found


def _load_config(ctx: click.Context, _: click.Parameter, value: str | None) -> None:
    """Put a file's options beneath the flags; a section named like the command wins over the top level."""
    if value is None:
        return
    from passes.core.errors import UserError

    found = _read_config(Path(value))
    section = found.get(ctx.info_name or "")
    entries = (
        section if isinstance(section, dict) else {k: v for k, v in found.items() if not isinstance(v, dict)}
    )
    known = {p.name: p for p in ctx.command.params if p.name and p.name != "config"}
    defaults: dict[str, Any] = {}
    for key, entry in entries.items():
        name = key.replace("-", "_")
        name = name if name in known else _ALIASES.get(name, name)
        if name not in known:
            import difflib

            near = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean '{near[0]}'?" if near else f"known: {', '.join(sorted(known))}"
            raise UserError(f"{value}: 'onnxq {ctx.info_name}' has no option '{key}'; {hint}")
        many = getattr(known[name], "multiple", False) or known[name].nargs == -1
        defaults[name] = [entry] if many and not isinstance(entry, list) else entry
    ctx.default_map = defaults


def config_option(function: F) -> F:
    """--config FILE."""
    return click.option(
        "--config",
        metavar="FILE",
        is_eager=True,
        expose_value=False,
        callback=_load_config,
        help="Options from a .json or .toml file; flags win over it.",
    )(function)


class _DataOption(click.Option):
    """--data; its help lists the kinds of data that there are."""

    def get_help_record(self, ctx: click.Context) -> tuple[str, str] | None:
        from onnxq.data import forms

        self.help = f"The samples: {', '.join(forms())}. Labels: labels.txt, class folders, or an array y."
        return super().get_help_record(ctx)


def data_options(*, required: bool = False, calibration: bool = True) -> Callable[[F], F]:
    """--data and everything that says how it is read."""

    def decorate(function: F) -> F:
        options = [
            click.option("--data", cls=_DataOption, metavar="D", required=required),
            click.option(
                "--preprocess",
                metavar="P",
                help="imagenet, cifar, efficientnet-lite, none (raw pixels) or FILE.json; needed for images.",
            ),
            click.option(
                "--limit",
                type=click.IntRange(min=0),
                default=0,
                help="Use at most so many samples, chosen by --seed.",
            ),
        ]
        if calibration:
            options += [
                click.option(
                    "--calibration-samples",
                    type=click.IntRange(min=1),
                    default=100,
                    show_default=True,
                    help="Samples that activation ranges are taken from.",
                ),
                click.option(
                    "--calibration-data", metavar="D", help="Calibrate on this instead of on --data."
                ),
            ]
        options.append(
            click.option("--seed", type=int, default=0, show_default=True, help="Of every random choice.")
        )
        for option in reversed(options):
            function = option(function)
        return threads_option(function)

    return decorate


def threads_option(function: F) -> F:
    return click.option(
        "--threads",
        type=click.IntRange(min=0),
        default=0,
        help="0 (default) uses every core of this process.",
    )(function)


def calibration_option(function: F) -> F:
    return click.option(
        "--calibration",
        default="percentile:99.99",
        show_default=True,
        help="minmax, percentile[:P], entropy, mse, or output (least error of the next layer's output): how"
        " activation ranges are found.",
    )(function)


def smooth_options(*more: str) -> Callable[[F], F]:
    """--smooth and --smooth-layers, in this order in --help. more: values besides none, output and input."""
    layers = click.option(
        "--smooth-layers", default="depthwise", show_default=True, help="Which layers to smooth, by commas."
    )
    site = click.option(
        "--smooth",
        type=click.Choice(["none", "output", "input", *more]),
        default="none",
        show_default=True,
        help="Smooth first." + " auto: layer by layer, as the search finds best." * ("auto" in more),
    )
    return lambda function: site(layers(function))


def _checked_damping(_context: click.Context, _parameter: click.Parameter, value: str) -> str:
    """The text itself: it is part of the settings that are stored beside the output."""
    from onnxq.rounding import parse_damping

    parse_damping(str(value))
    return str(value)


def damping_option(default: str) -> Callable[[F], F]:
    return click.option(
        "--damping",
        default=default,
        show_default=True,
        callback=_checked_damping,
        metavar="D|auto",
        help="Of rounding gptq and adaround: how little they trust the calibration data. auto chooses it"
        " layer by layer on a part that is held out, at three times the cost of a number such as 1.0.",
    )


def json_option(function: F) -> F:
    return click.option(
        "--json", "as_json", is_flag=True, help="Print JSON on stdout and nothing else there."
    )(function)


class _MetricOption(click.Option):
    """--metric; its help lists the metrics that there are, which only --help needs to know."""

    def get_help_record(self, ctx: click.Context) -> tuple[str, str] | None:
        from onnxq.metrics import default_metric, known_metrics

        labelled, otherwise = default_metric(labelled=True).name, default_metric(labelled=False).name
        names = ", ".join(name for name in known_metrics() if name not in (labelled, otherwise))
        self.help = (
            f"What quality is: {labelled} (the default for labelled data), {otherwise} (the default "
            f"otherwise), {names}, or a class of your own as module:Class, whose code is run."
        )
        return super().get_help_record(ctx)


def metric_option(function: F) -> F:
    return click.option("--metric", cls=_MetricOption)(function)


def output_option(default: str) -> Callable[[F], F]:
    """-o, with what stands in its place when it is left out."""
    return click.option("-o", "--output", metavar="OUT", help=f"Where to write; default {default}.")


def _allow_unverified(ctx: click.Context, param: click.Parameter, value: bool) -> None:  # noqa: ARG001
    if value:
        from onnxq.hub import UNVERIFIED

        token = UNVERIFIED.set(True)
        ctx.call_on_close(lambda: UNVERIFIED.reset(token))


def hub_option(function: F) -> F:
    """--hub, and --allow-unverified, which reaches `onnxq.hub` without being handed through every command."""
    function = click.option(
        "--allow-unverified",
        is_flag=True,
        expose_value=False,
        callback=_allow_unverified,
        help="Take a hub:NAME model for which the hub's manifest has no SHA-256.",
    )(function)
    return click.option(
        "--hub",
        metavar="URL",
        envvar="ONNXQ_HUB",
        help="Where hub:NAME models come from: a URL or a folder that holds ONNX_HUB_MANIFEST.json.",
    )(function)


def _some_models(ctx: click.Context, param: click.Parameter, value: tuple[str, ...]) -> tuple[str, ...]:
    """The models, from --config where the line names none; click before 8.2 does not look there itself."""
    found = value or tuple(ctx.lookup_default("models") or ())
    if not found:
        raise click.MissingParameter(ctx=ctx, param=param)
    return found


def models_argument(function: F) -> F:
    return click.argument("models", metavar="MODEL...", nargs=-1, callback=_some_models)(function)


def resolve_threads(threads: int) -> int:
    """A number of threads: the given one, or all cores of this process."""
    from onnxq.machine import default_threads

    return threads or default_threads()


def splitted(values: tuple[str, ...]) -> tuple[str, ...]:
    """Repeated and comma-separated values as one tuple."""
    return tuple(part.strip() for value in values for part in value.split(",") if part.strip())


def absolute_free(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings to store in a model: paths become file names and unset options go, so that the same inputs
    give the same bytes wherever they lie."""
    kept: dict[str, Any] = {}
    for key, value in settings.items():
        if value is None or value == () or value is False:
            continue
        if isinstance(value, str) and ("/" in value or "\\" in value) and Path(value).exists():
            value = Path(value).name
        kept[key] = list(value) if isinstance(value, tuple) else value
    return kept


if TYPE_CHECKING:
    _FloatType = click.ParamType[float]
else:
    _FloatType = click.ParamType  # not generic before click 8.3


class Duration(_FloatType):
    """Seconds from `90s`, `20m`, `1h30m` or a plain number of seconds."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        if isinstance(value, int | float):
            return float(value)
        text = str(value).strip().lower()
        match = re.fullmatch(r"(?:(\d+(?:\.\d+)?)h)?(?:(\d+(?:\.\d+)?)m)?(?:(\d+(?:\.\d+)?)s?)?", text)
        if not text or match is None:
            self.fail(f"'{value}' is no duration; write 90s, 20m or 1h30m", param, ctx)
        hours, minutes, seconds = (float(part or 0) for part in match.groups())
        return hours * 3600 + minutes * 60 + seconds


class ByteSize(_FloatType):
    """Bytes from `2.4MB`, `800kB`, `1.5MiB` or a plain number."""

    name = "size"
    _UNITS: ClassVar[dict[str, int]] = {
        "": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": 2**10, "mib": 2**20, "gib": 2**30,
    }  # fmt: skip

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        if isinstance(value, int | float):
            return float(value)
        match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kmg]?i?b?)", str(value).strip().lower())
        if match is None or match.group(2) not in self._UNITS:
            self.fail(f"'{value}' is no size; write 2.4MB, 800kB or 1.5MiB", param, ctx)
        return float(match.group(1)) * self._UNITS[match.group(2)]
