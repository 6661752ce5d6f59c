"""What a session gives to its engine."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from hpcsh.boundary.base import Boundary
from hpcsh.clock import Clock, SystemClock, new_id
from hpcsh.events import EventBus
from hpcsh.profiles import Profile
from hpcsh.slurm.cluster import Cluster
from hpcsh.store import Store


@dataclass
class Context:
    """One session's surroundings. `boundary` and `cluster` are shared by all sessions on the same target."""

    profile: Profile
    boundary: Boundary
    cluster: Cluster
    store: Store
    bus: EventBus
    clock: Clock = field(default_factory=SystemClock)
    new_id: Callable[[], str] = new_id

    @property
    def target(self) -> str:
        """The key of the target, under which the store keeps this session's records."""
        return self.profile.target.key()
