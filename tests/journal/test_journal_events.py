"""Every event survives being written down, whatever is in it."""

import dataclasses
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raytuner import journal
from raytuner.errors import JournalError
from raytuner.journal import Event, Logged, Reported, TrialAsked
from raytuner.journal.events import decode, encode

VALUES = {
    "str": "naïve · “text”\nwith a \u2028 break",
    "str | None": "somewhere",
    "int": 17,
    "bool": True,
    "dict[str, dict[str, Any]]": {"000001": {"lr": 0.1}},
    "float": 1.25,
    "float | None": -0.5,
    "list[str]": ["0", "GPU-1"],
    "list[dict[str, Any]]": [{"node": "10.0.0.2", "gpus": ["0"]}],
    "dict[str, Any]": {"a": [1, None, True], "b": {"c": "d"}},
    "dict[str, Any] | None": {"kind": "ValueError", "message": "no"},
    "dict[str, str]": {"torch": "2.13"},
    "dict[str, float]": {"loss": 0.25, "up": math.inf, "down": -math.inf},
}


def make(cls: type[Event]) -> Event:
    return cls(**{field.name: VALUES[field.type] for field in dataclasses.fields(cls)})


EVENTS = [getattr(journal, name) for name in journal.__all__ if isinstance(getattr(journal, name), type)]
EVENTS = [cls for cls in EVENTS if issubclass(cls, Event) and cls is not Event]


def test_all_events_are_here() -> None:
    assert len(EVENTS) == 16


@pytest.mark.parametrize("cls", EVENTS)
def test_round_trip(cls: type[Event]) -> None:
    event = make(cls)
    line = encode(event)
    assert "\n" not in line
    assert decode(line) == event


def test_numbers_that_json_does_not_know() -> None:
    event = Reported(trial="000001", attempt=1, step=1, metrics={"a": math.nan, "b": math.inf, "c": -math.inf})
    again = decode(encode(event))
    assert isinstance(again, Reported)
    assert math.isnan(again.metrics["a"])
    assert (again.metrics["b"], again.metrics["c"]) == (math.inf, -math.inf)


@given(st.text(), st.floats(allow_nan=False))
def test_any_text_and_number(text: str, value: float) -> None:
    event = Logged(trial="000001", attempt=1, step=1, name=text, path=text)
    assert decode(encode(event)) == event
    tested = journal.Tested(trial="000001", step=1, metrics={text: value})
    assert decode(encode(tested)) == tested


def test_a_field_of_a_newer_writer_is_ignored() -> None:
    event = TrialAsked(trial="000001", config={"x": 1})
    assert decode(encode(event)[:-1] + ',"colour":"red"}') == event


def test_a_type_of_a_newer_writer_is_refused() -> None:
    with pytest.raises(JournalError, match=r"'trial_cloned'.*upgrade"):
        decode('{"type":"trial_cloned","at":1.0}')
