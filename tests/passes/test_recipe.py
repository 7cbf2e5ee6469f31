"""Recipes: text and passes are the same thing, and each mistake has its sentence."""

from __future__ import annotations

import dataclasses
import typing
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import passes.fold_batchnorm
import passes.simplify  # noqa: F401 - registers the pass
from passes.core.base import Pass, Sequential, pass_class, pass_names, register
from passes.core.errors import RecipeError, UserError
from passes.core.recipe import format_pass, load_recipe, parse_recipe
from passes.fold_batchnorm import FoldBatchNorm
from passes.simplify import Simplify

WORDS = st.text(st.characters(codec="utf-8", exclude_categories=["Cs", "Cc"]), min_size=1, max_size=12)
# A tuple is written with commas between its items, so an item holds none.
ITEMS = WORDS.filter(lambda word: "," not in word)


def _option(kind: object) -> st.SearchStrategy[object]:
    origin = typing.get_origin(kind)
    if origin is typing.Literal:
        return st.sampled_from(typing.get_args(kind))
    if origin is tuple:
        return st.lists(ITEMS, max_size=3).map(tuple)
    by_type: dict[object, st.SearchStrategy[object]] = {
        bool: st.booleans(),
        int: st.integers(-(2**40), 2**40),
        float: st.floats(allow_nan=False),
        str: WORDS,
    }
    return by_type.get(kind, st.nothing())


@st.composite
def any_pass(draw: st.DrawFn) -> Pass:
    """A registered pass with any options it accepts."""
    cls = pass_class(draw(st.sampled_from(pass_names())))
    assert cls is not None
    kinds = typing.get_type_hints(cls)
    options: dict[str, object] = {}
    for spec in dataclasses.fields(cls):  # type: ignore[arg-type]
        strategy = _option(kinds[spec.name])
        if not strategy.is_empty and (spec.default is dataclasses.MISSING or draw(st.booleans())):
            options[spec.name] = draw(strategy)
    try:
        return cls(**options)
    except UserError:
        return cls()


@settings(max_examples=150, deadline=None)
@example([pass_class("quantize")(weights=",")])  # type: ignore[misc,call-arg]
@given(st.lists(any_pass(), min_size=1, max_size=3))
def test_text_round_trips(members: list[Pass]) -> None:
    sequence = Sequential(tuple(members))
    assert parse_recipe(format_pass(sequence)) == sequence
    assert parse_recipe("\n".join(str(member) for member in members)) == sequence


def test_our_passes_are_registered() -> None:
    assert pass_class("simplify") is Simplify
    assert pass_class("fold_batchnorm") is FoldBatchNorm


def test_forms() -> None:
    expected = Simplify() | FoldBatchNorm(standalone="keep", fold_affine=True)
    assert str(expected) == "simplify | fold_batchnorm{standalone=keep fold_affine=true}"
    text = """
    # what to do first
    simplify   # no options
    fold_batchnorm { standalone = "keep"  fold_affine=true }
    """
    assert parse_recipe(text) == expected
    assert (Simplify() | (FoldBatchNorm() | Simplify())).members == (Simplify(), FoldBatchNorm(), Simplify())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("simplfy", "unknown pass 'simplfy'; did you mean simplify"),
        ("fold_batchnorm{standalon=keep}", "has no option 'standalon'; did you mean standalone"),
        ("fold_batchnorm{standalone=often}", "it must be one of depthwise, keep"),
        ("fold_batchnorm{fold_affine=yes}", "it must be true or false"),
        ("simplify{size_limit=big}", "it must be a number"),
        ("simplify{size_limit=1", "the brace is never closed"),
        ("quantize{weights=int8, activations=float}", "take the comma off 'weights=int8,'"),
        ("simplify{size_limit}", "expected option=value at 'size_limit'"),
        ("simplify{size_limit=}", "expected option=value"),
        ('fold_batchnorm{standalone="keep}', "a quote is opened and never closed"),
        ("= simplify", "expected the name of a pass, found '='"),
        ("  # nothing\n", "holds no pass; known: "),
        ("", "holds no pass"),
    ],
)
def test_each_mistake_has_its_sentence(text: str, message: str) -> None:
    with pytest.raises(RecipeError) as caught:
        parse_recipe(text, "my.recipe")
    assert str(caught.value).startswith("my.recipe: ")
    assert message in str(caught.value)


def test_files(tmp_path: Path) -> None:
    file = tmp_path / "r.recipe"
    file.write_text("simplify\nfold_batchnorm\n")
    assert load_recipe(str(file)) == Simplify() | FoldBatchNorm()
    assert load_recipe("simplify | fold_batchnorm") == Simplify() | FoldBatchNorm()
    assert load_recipe("simplify # " + "x" * 5000) == Sequential((Simplify(),))
    with pytest.raises(RecipeError, match="no such recipe file"):
        load_recipe("missing.recipe")
    file.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(RecipeError, match="not a text file"):
        load_recipe(str(file))


def test_a_name_is_taken_once() -> None:
    with pytest.raises(ValueError, match="simplify"):
        register(Simplify)
