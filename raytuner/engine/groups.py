"""Placement groups that are given up are removed only once Ray has made them.

Ray (2.60) loses for ever what a group was to have when the group is removed between its preparation on the nodes and
its commitment: they count it as taken, and nobody has it. That takes milliseconds, and Ray Tune removes a group
just then whenever it hands a trial another's slot while its own is about to start.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import ray
from ray.air.execution.resources.placement_group import PlacementGroupResourceManager
from ray.air.execution.resources.request import ResourceRequest
from ray.util.placement_group import PlacementGroup, placement_group_table, remove_placement_group

__all__ = ["PatientGroups"]

PATIENCE_SECONDS = 2.0
"""How long to wait for a group to be made: one for which there is room is made in less, others wait in a queue."""
LOOK_SECONDS = 0.02
"""How often to look at most."""


@dataclass(eq=False)
class _GivenUp:
    request: ResourceRequest
    group: PlacementGroup
    ready: ray.ObjectRef
    since: float


class PatientGroups(PlacementGroupResourceManager):  # type: ignore[misc]  # Ray has no types
    """Ray Tune's keeper of placement groups; ``sweep`` is to be called now and then."""

    def __init__(self, update_interval_s: float = 0.1) -> None:  # which Ray's ``clear`` calls with what it was
        super().__init__(update_interval_s)
        self._given_up: list[_GivenUp] = []
        self._looked = 0.0

    def request_resources(self, resource_request: ResourceRequest) -> None:
        """Ask Ray for a group, or take one that was given up a moment ago."""
        for spare in self._given_up:
            if spare.request == resource_request:
                self._given_up.remove(spare)
                self._pg_to_request[spare.group] = resource_request
                self._request_to_staged_pgs[resource_request].add(spare.group)
                self._staging_future_to_pg[spare.ready] = spare.group
                self._pg_to_staging_future[spare.group] = spare.ready
                return
        super().request_resources(resource_request)

    def cancel_resource_request(self, resource_request: ResourceRequest) -> None:
        """Give up a group that is not used yet."""
        staged = self._request_to_staged_pgs[resource_request]
        if not staged:
            super().cancel_resource_request(resource_request)  # it has been made
            return
        group = staged.pop()
        ready = self._pg_to_staging_future.pop(group)
        del self._staging_future_to_pg[ready], self._pg_to_request[group]
        self._given_up.append(_GivenUp(resource_request, group, ready, time.monotonic()))

    def sweep(self) -> None:
        """Remove the groups that were given up and can be removed."""
        now = time.monotonic()
        if not self._given_up or now - self._looked < LOOK_SECONDS:
            return
        self._looked = now
        for spare in list(self._given_up):
            state = placement_group_table(spare.group)["state"]
            if state == "PREPARED" or (state == "PENDING" and now - spare.since < PATIENCE_SECONDS):
                continue
            self._given_up.remove(spare)
            ray.cancel(spare.ready)
            remove_placement_group(spare.group)

    def clear(self) -> None:
        """Remove all groups, whatever they are used for."""
        for request, staged in list(self._request_to_staged_pgs.items()):
            for _ in range(len(staged)):
                self.cancel_resource_request(request)
        limit = time.monotonic() + 2 * PATIENCE_SECONDS
        while self._given_up and ray.is_initialized() and time.monotonic() < limit:
            time.sleep(LOOK_SECONDS)
            self.sweep()
        super().clear()
