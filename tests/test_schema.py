"""Data that fits makes the dataclass; data that does not gives one sentence naming file, key, value and a way out."""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lewm.schema import SchemaError, build, describe, field_docs, read_json


@dataclass(frozen=True)
class Cat:
    """Purrs."""

    name: Literal["cat"] = "cat"
    lives: int = 9
    """Lives
    left."""

    def __post_init__(self) -> None:
        if self.lives < 1:
            raise ValueError(f"lives is {self.lives}; it must be at least 1")


@dataclass(frozen=True)
class Dog:
    """Barks."""

    name: Literal["dog"] = "dog"
    tricks: tuple[str, ...] = ()
    """What it can do."""


@dataclass(frozen=True)
class House:
    """Where they live."""

    pet: Cat | Dog
    """Who lives there."""
    area: float = 50.0
    """Square metres."""
    guests: tuple[Cat | Dog, ...] = ()
    """Who visits."""
    spare: Cat | None = None
    """A second cat."""
    sizes: tuple[int, ...] = (1,)
    prices: dict[str, float] = field(default_factory=dict)
    colour: Literal["red", "blue"] = "red"


def message(data: Any) -> str:
    with pytest.raises(SchemaError) as caught:
        build(House, data, "house.yaml")
    text = str(caught.value)
    assert text.startswith("house.yaml: ")
    assert "\n" not in text
    return text.removeprefix("house.yaml: ")


def test_nested_data_becomes_dataclasses() -> None:
    house = build(
        House,
        {
            "pet": {"name": "dog", "tricks": ["sit", "roll"]},
            "area": 70,
            "guests": [{"name": "cat", "lives": 3}, {"name": "dog"}],
            "spare": {"lives": 2},
            "sizes": [1, 2],
            "prices": {"rent": 5},
        },
        "house.yaml",
    )
    assert house == House(Dog(tricks=("sit", "roll")), 70.0, (Cat(lives=3), Dog()), Cat(lives=2), (1, 2), {"rent": 5.0})
    assert isinstance(house.area, float)
    assert build(House, asdict(house), "again") == house
    assert build(House, house, "as it is") is house


def test_defaults_none_and_ready_made_members() -> None:
    assert build(House, {"pet": {"name": "cat"}, "spare": None}, "f") == House(Cat())
    assert build(House, {"pet": Dog(), "guests": (Cat(),)}, "f") == House(Dog(), guests=(Cat(),))


CAT = {"name": "cat"}


@pytest.mark.parametrize(
    "data, expected",
    [
        ({"pet": CAT, "aera": 3}, "aera is unknown; did you mean area?"),
        ({"pet": {"name": "cat", "live": 3}}, "pet.live is unknown; did you mean pet.lives?"),
        ({"pet": CAT, "zzz": 3}, "zzz is unknown; choose one of pet, area, guests, spare, sizes, prices, colour"),
        ({"pet": CAT, 7: 3}, "7 is unknown; choose one of"),
        ({"area": 3}, "pet is missing; add it"),
        ({"pet": CAT, "area": "large"}, "area is 'large'; input should be a valid number"),
        ({"pet": {"name": "cat", "lives": 2.5}}, "pet.lives is 2.5; input should be a valid integer"),
        ({"pet": {"name": "cat", "lives": 0}}, "pet: lives is 0; it must be at least 1"),
        ({"pet": {"name": "dgo"}}, "pet.name is 'dgo'; did you mean dog?"),
        ({"pet": {"name": ["dog"]}}, "pet.name is ['dog']; "),
        ({"pet": {"lives": 3}}, "pet.name is None; choose one of cat, dog"),
        ({"pet": "cat"}, "pet must be a mapping of settings, not 'cat'"),
        ({"pet": None}, "pet.name is None; choose one of cat, dog"),
        ({"pet": CAT, "guests": [CAT, {"name": "cat", "lives": "x"}]}, "guests.1.lives is 'x'; "),
        ({"pet": CAT, "guests": [CAT, {"name": "cow"}]}, "guests.1.name is 'cow'; "),
        ({"pet": CAT, "spare": 3}, "spare must be a mapping of settings, not 3"),
        ({"pet": CAT, "sizes": [1, "b"]}, "sizes.1 is 'b'; input should be a valid integer"),
        ({"pet": CAT, "sizes": 3}, "sizes is 3; "),
        ({"pet": CAT, "prices": {"rent": "much"}}, "prices is 'much'; "),
        ({"pet": CAT, "colour": "rde"}, "colour is 'rde'; input should be 'red' or 'blue'"),
        ([CAT], "House must be a mapping of settings, not [{'name': 'cat'}]"),
        (None, "House must be a mapping of settings, not None"),
    ],
)
def test_what_does_not_fit_is_named(data: Any, expected: str) -> None:
    assert message(data).startswith(expected)


@pytest.mark.parametrize("guests", [CAT, "cat", 3, {}])
def test_a_list_of_settings_must_be_a_list(guests: Any) -> None:
    """The dash that YAML needs is easily forgotten."""
    assert message({"pet": CAT, "guests": guests}).startswith("guests must be a list")


JUNK = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.floats() | st.sampled_from(["cat", "dog", "red", "x"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["name", "lives", "tricks", "pet", "area", "guests", "spare", "sizes", "prices"]), inner
        )
    ),
    max_leaves=8,
)


@settings(derandomize=True, deadline=None, database=None)
@given(JUNK)
def test_junk_never_escapes_as_another_error(data: Any) -> None:
    try:
        assert isinstance(build(House, data, "junk"), House)
    except SchemaError as error:
        assert str(error).startswith("junk: ")


def test_field_docstrings_are_the_help() -> None:
    assert field_docs(Cat) == {"lives": "Lives left."}
    keys = describe(House)
    assert ("pet.lives (cat)", "") not in keys
    assert ("pet.lives", "Lives left. (cat)") in keys
    assert ("pet.tricks", "What it can do. (dog)") in keys
    assert ("area", "Square metres.") in keys
    assert ("spare.lives", "Lives left.") in keys


def test_json_that_is_not_there_is_named(tmp_path: Path) -> None:
    for path in (tmp_path / "nope.json", tmp_path):
        with pytest.raises(FileNotFoundError, match=f"^{path} is no file: check the path, or run the command"):
            read_json(path)


def test_json_that_is_not_json_is_named(tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    for content in (b"{", b"", b"\xff\xfe\x00"):
        file.write_bytes(content)
        with pytest.raises(SchemaError, match=r"a\.json is not JSON .*damaged or not the file"):
            read_json(file)
    file.write_text('{"a": 1}')
    assert read_json(file) == {"a": 1}
