"""No placement group that is given up takes a part of its node with it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest
from conftest import make_whole, wait_until
from ray.air.execution.resources.request import ResourceRequest
from ray.util.placement_group import PlacementGroup, placement_group_table, remove_placement_group

from raytuner.engine.groups import PatientGroups

ONE_CORE = ResourceRequest([{"CPU": 1}])
TOO_MUCH = ResourceRequest([{"CPU": 1000}])


@pytest.fixture
def groups(ray: Any) -> Iterator[PatientGroups]:
    make_whole(ray)
    groups = PatientGroups()
    yield groups
    groups.clear()
    wait_until(lambda: ray.available_resources().get("CPU") == 2, 10, "all cores are free")


def the_one(groups: PatientGroups) -> PlacementGroup:
    (group,) = groups._pg_to_request
    return group


@pytest.fixture
def removed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The states of groups at their removal."""
    states: list[str] = []

    def remove(group: PlacementGroup) -> None:
        states.append(placement_group_table(group)["state"])
        remove_placement_group(group)

    monkeypatch.setattr("raytuner.engine.groups.remove_placement_group", remove)
    monkeypatch.setattr("raytuner.engine.groups.PATIENCE_SECONDS", 8.0)  # however busy this machine is
    return states


def sweep_until(groups: PatientGroups, removed: list[str]) -> None:
    def swept() -> list[str]:
        groups.sweep()
        return removed

    wait_until(swept, 10, "it is removed")


@pytest.mark.parametrize("milliseconds", [0, 1, 2, 3, 4, 6])
def test_one_that_is_being_made_is_removed_once_it_is(
    groups: PatientGroups, removed: list[str], milliseconds: int
) -> None:
    groups.request_resources(ONE_CORE)
    time.sleep(milliseconds / 1000)
    groups.cancel_resource_request(ONE_CORE)
    assert not groups.get_resource_futures()
    sweep_until(groups, removed)
    assert removed == ["CREATED"]


def test_one_for_which_there_is_no_room_is_removed_all_the_same(
    groups: PatientGroups, removed: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("raytuner.engine.groups.PATIENCE_SECONDS", 0.5)
    groups.request_resources(TOO_MUCH)
    groups.cancel_resource_request(TOO_MUCH)
    sweep_until(groups, removed)
    assert removed == ["PENDING"]


def test_one_that_was_given_up_is_taken_back(groups: PatientGroups) -> None:
    groups.request_resources(ONE_CORE)
    group = the_one(groups)
    groups.cancel_resource_request(ONE_CORE)
    groups.request_resources(ONE_CORE)
    assert the_one(groups) == group
    wait_until(lambda: groups.has_resources_ready(ONE_CORE), 20, "it is there")
    groups.sweep()
    acquired = groups.acquire_resources(ONE_CORE)
    assert acquired is not None
    assert acquired.placement_group == group
    groups.free_resources(acquired)


def test_the_end_waits_for_what_is_being_made(groups: PatientGroups, removed: list[str]) -> None:
    for given_up in (True, False, True, False, True):
        groups.request_resources(ONE_CORE)
        if given_up:
            groups.cancel_resource_request(ONE_CORE)
        groups.clear()
    assert removed == ["CREATED"] * 5
