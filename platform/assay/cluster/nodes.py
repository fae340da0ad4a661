"""Nodes of a cluster: what they have, what they may come to have, and the wait for those that start.

A cluster grows where Ray's autoscaler says that it manages nodes, or where `ASSAY_CLUSTER_MAX`
tells its maximum (CPU=96,GPU=8), as the files in `cluster/` do. What such a cluster lacks is asked
for by a placement group: the autoscaler starts nodes for it, and it ends with this process, so that
a driver that dies leaves no request behind which would keep nodes, and their price, for ever.
"""

import json
import os
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from assay.errors import ConfigError, ResourceError

MAXIMUM = "ASSAY_CLUSTER_MAX"
"""Environment variable: what the cluster may come to have in all."""

DRIVER = "driver"
"""A resource of nodes that stay, for what waits for workers elsewhere: the head's in `cluster/`, which has no CPUs."""

POLL_S, TELL_S = 1.0, 30.0
"""Seconds between two looks, and between two lines that say the same."""

REPORT_S = 15.0
"""Seconds within which an autoscaler has first reported; it does so every five."""

Bundle = Mapping[str, float]
"""CPUs and GPUs of one node, by Ray's names."""


@dataclass(frozen=True)
class Growth:
    """What the autoscaler of a cluster that grows does now."""

    starting: int = 0
    """Nodes on their way."""
    trouble: str = ""
    """Why a node did not start of late."""
    impossible: frozenset[str] = frozenset()
    """Placement groups (hexadecimal ids) that no number of nodes could hold."""


def growth() -> Growth | None:
    """Return what the cluster's autoscaler does; None where the cluster is fixed."""
    _await_report(os.environ.get("RAY_ADDRESS", ""))
    return _growth_v1() or _growth_v2() or (Growth() if maximum() else None)


@lru_cache(maxsize=8)
def _await_report(address: str) -> None:
    """Wait for an autoscaler's first word: in the first seconds of a cluster it has said nothing yet.

    Args:
        address: of the cluster; none: it is this process's own, which has none.
    """
    end = time.monotonic() + REPORT_S
    while address and time.monotonic() < end:
        if (
            "autoscaler_report" in _report_v1()
            or _report_v2().autoscaling_state.autoscaler_state_version
        ):
            return
        time.sleep(POLL_S)


def maximum() -> dict[str, float] | None:
    """Return what the cluster may come to have, where `ASSAY_CLUSTER_MAX` tells; what it does not name stays as it is.

    Raises:
        ConfigError: it is not of the form CPU=96,GPU=8.
    """
    text = os.environ.get(MAXIMUM, "")
    if not text:
        return None
    try:
        pairs = [part.split("=") for part in text.split(",")]
        return up() | {name.strip(): float(value) for name, value in pairs}
    except ValueError:
        raise ConfigError(
            f"{MAXIMUM} is {text!r}; write what the cluster may have in all, such as CPU=96,GPU=8."
        ) from None


def up() -> dict[str, float]:
    """Return the CPUs and GPUs of the nodes that are there, and places for drivers where nodes have such."""
    import ray

    has = ray.cluster_resources()  # type: ignore[no-untyped-call]
    kept = ("CPU", "GPU", DRIVER)
    return {"CPU": 0.0, "GPU": 0.0} | {name: has[name] for name in kept if name in has}


def sizes_of_nodes() -> list[float]:
    """Return the CPUs of each node that has any."""
    import ray

    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]
    return [float(has["CPU"]) for has in nodes if has.get("CPU")]


def most_left_of_a_node() -> float:
    """Return the most CPUs that a node has outside of placement groups, whoever made these: what a task may come to have."""
    import ray
    from ray.util import placement_group_table

    left = {n["NodeID"]: n["Resources"].get("CPU", 0.0) for n in ray.nodes() if n["Alive"]}  # type: ignore[no-untyped-call]
    for group in placement_group_table().values():
        if group["state"] == "CREATED":
            for index, node in group["bundles_to_node_id"].items():
                left[node] = left.get(node, 0.0) - group["bundles"][index].get("CPU", 0.0)
    return float(max(left.values(), default=0.0))


def total(bundles: Sequence[Bundle]) -> dict[str, float]:
    """Add bundles up."""
    need: Counter[str] = Counter()
    for bundle in bundles:
        need.update(bundle)
    return {name: round(value, 6) for name, value in need.items() if value}


def say(resources: Mapping[str, float]) -> str:
    """Write resources as people read them: "8 GPUs and 9.5 CPUs"."""
    names = sorted(resources, reverse=True)  # GPUs first: they are what is scarce
    return " and ".join(f"{resources[name]:g} {name}s" for name in names)


def lacks(need: Mapping[str, float], has: Mapping[str, float]) -> bool:
    """Tell whether there is too little of anything."""
    return any(value > has.get(name, 0.0) + 1e-6 for name, value in need.items())


def refuse_beyond(
    need: Mapping[str, float], has: Mapping[str, float], lower: str, what: str = ""
) -> None:
    """Refuse what a cluster will never have.

    Args:
        need: what is needed.
        has: what the cluster may have at most.
        lower: what its user can change.
        what: for what it is needed.

    Raises:
        ResourceError: it has, or may come to have, less than is needed; says both.
    """
    if lacks(need, has):
        shown = {name: has.get(name, 0.0) for name in need}
        raise ResourceError(
            f"{what + ' need ' if what else ''}{say(need)}{'' if what else ' are needed'} and the cluster has {say(shown)} at most; {lower}, or take a larger cluster."
        )


class Waiting:
    """A wait for nodes, with its limit, told on the terminal as it goes on."""

    def __init__(self, need: Mapping[str, float], limit_s: float) -> None:
        self.need, self.limit_s = need, limit_s
        self.began, self.told_at, self.told = time.monotonic(), -TELL_S, ""

    def look(self, group: str = "") -> None:
        """Tell what is up and what is starting, where that is new.

        Args:
            group: id of the placement group that is waited for; none: told only while less is up than needed.

        Raises:
            ResourceError: the time is over, or the autoscaler has no nodes that could hold it.
        """
        have = {name: value for name, value in up().items() if name in self.need}
        if not group and not lacks(self.need, have):
            return
        now = growth() or Growth()
        waited = time.monotonic() - self.began
        trouble = f"; the last node did not start: {now.trouble}" if now.trouble else ""
        if group in now.impossible and not self._others():
            raise ResourceError(
                f"{say(self.need)} are needed and the cluster's autoscaler has no kinds of nodes that could hold them (it has {say(have)} now); "
                "lower what each worker asks for, or add a larger kind of node."
            )
        if waited >= self.limit_s:
            raise ResourceError(
                f"{say(self.need)} are needed and after {self.limit_s:g} s the cluster has {say(have)}, of which others may use some, and {now.starting} nodes starting{trouble}; "
                "wait longer (--wait-s), ask for less, or see what the autoscaler says (ray status)."
            )
        text = f"{say(have)} up, {now.starting} nodes starting{trouble}"
        if text != self.told or waited >= self.told_at + TELL_S:
            print(
                f"waiting for {say(self.need)}: {text}, {waited:.0f} s of {self.limit_s:g} s",
                file=sys.stderr,
                flush=True,
            )
            self.told, self.told_at = text, waited

    def _others(self) -> bool:
        """Tell whether something else lies on what is needed, which may end."""
        import ray

        free = ray.available_resources()  # type: ignore[no-untyped-call]
        return any(free.get(name, 0.0) < have - 1e-6 for name, have in up().items())


def gather(bundles: Sequence[Bundle], limit_s: float, lower: str) -> None:
    """Wait until a cluster that grows has room for all bundles at once, each on one node.

    Nodes stay until they have been idle for the autoscaler's own time, so what is started next
    finds them.

    Raises:
        ResourceError: there will never be room, or there was none within `limit_s` seconds.
    """
    from ray.util import placement_group, remove_placement_group

    need, most = total(bundles), maximum()
    if most is not None:
        refuse_beyond(need, most, lower)
    group = placement_group([dict(bundle) for bundle in bundles])
    try:
        waiting = Waiting(need, limit_s)
        while not group.wait(POLL_S):
            waiting.look(group.id.hex())
    finally:
        remove_placement_group(group)


def _growth_v1() -> Growth | None:
    """Read what the autoscaler's first version writes down; a cluster that is fixed has nodes without a kind."""
    report = _report_v1().get("autoscaler_report")
    if not report or not any(_is_kind(name) for name in report["active_nodes"]):
        return None
    starting = len(report["pending_nodes"]) + sum(report["pending_launches"].values())
    trouble = ""
    for kind in report["node_availability_summary"]["node_availabilities"].values():
        unavailable = kind["unavailable_node_information"]
        if unavailable:
            trouble = f"{kind['node_type']}: {unavailable['description']}"
    return Growth(starting, trouble)


def _growth_v2() -> Growth | None:
    """Ask Ray what the autoscaler's second version reports to it."""
    status = _report_v2()
    state, nodes = status.autoscaling_state, status.cluster_resource_state.node_states
    if not state.autoscaler_state_version or not any(_is_kind(n.ray_node_type_name) for n in nodes):
        return None
    requested = sum(request.count for request in state.pending_instance_requests)
    failed = state.failed_instance_requests
    trouble = f"{failed[-1].ray_node_type_name}: {failed[-1].reason}" if failed else ""
    # details are "<id>:<strategy>|<state>"
    groups = (each.details.partition(":")[0] for each in state.infeasible_gang_resource_requests)
    return Growth(len(state.pending_instances) + requested, trouble, frozenset(groups))


def _report_v1() -> dict[str, Any]:
    from ray._private.ray_constants import DEBUG_AUTOSCALING_STATUS
    from ray.experimental.internal_kv import _internal_kv_get

    report: dict[str, Any] = json.loads(_internal_kv_get(DEBUG_AUTOSCALING_STATUS) or "{}")
    return report


def _report_v2() -> Any:
    import ray
    from ray._raylet import GcsClient  # type: ignore[attr-defined]
    from ray.core.generated.autoscaler_pb2 import (  # type: ignore[attr-defined]
        GetClusterStatusReply,
    )

    client = GcsClient(address=ray.get_runtime_context().gcs_address)
    status = GetClusterStatusReply()
    status.ParseFromString(client.get_cluster_status(timeout_s=10))
    return status


def _is_kind(name: str) -> bool:
    """Tell whether a node's kind is one of an autoscaler's; where there is none, Ray names each after itself."""
    return bool(name) and not name.startswith("node_")
