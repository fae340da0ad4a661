"""What a run's launches reserve in the cluster, and what is left of it where one was killed.

Ray Train reserves CPUs for a launch's workers. Where the driver of a trial is killed, and with it what steers the launch, they
stay reserved as long as Ray's job lasts, unless Ray Train's own cleaner can ask the cluster's dashboard. So the
launch notes what it has reserved, and the next one of the same run gives it back.
"""

from pathlib import Path

import ray
from ray._raylet import PlacementGroupID
from ray.experimental.internal_kv import (
    _internal_kv_del,
    _internal_kv_get,
    _internal_kv_put,
)
from ray.util.placement_group import (
    PlacementGroup,
    get_current_placement_group,
    remove_placement_group,
)


def note_reservation(folder: Path) -> None:
    """Note in the cluster which resources the launch of a run that this worker belongs to has reserved."""
    group = get_current_placement_group()
    if group is not None:
        _internal_kv_put(_key(folder), group.id.hex())


def drop_reservation(folder: Path) -> None:
    """Give back what an earlier launch of a run has reserved and still holds; what is held no more stays so."""
    group = _internal_kv_get(_key(folder))
    if group is not None:
        remove_placement_group(PlacementGroup(PlacementGroupID.from_hex(group.decode())))
        _internal_kv_del(_key(folder))


def _key(folder: Path) -> str:
    """Name the note of a run within one job of Ray, which itself gives back what an ended job held."""
    return f"assay-reservation-{ray.get_runtime_context().get_job_id()}-{folder}"
