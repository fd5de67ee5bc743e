"""Memory that a library may take in one call: what asks for more gets its error instead of the machine's."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def more_memory(most: int) -> Iterator[None]:
    """Let this process take ``most`` bytes more than it has; further allocations fail (MemoryError) while it lasts.

    Linux only, elsewhere without effect.
    """
    if sys.platform != "linux":
        yield
        return
    import resource

    pages = int(Path("/proc/self/statm").read_text().split()[0])
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    wanted = pages * resource.getpagesize() + most
    limit = wanted if soft == resource.RLIM_INFINITY else min(wanted, soft)
    resource.setrlimit(resource.RLIMIT_AS, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def to_what_is_free() -> None:
    """Let this process, for good, take three quarters of what is free now; a machine that is full ends it first.

    Linux only, elsewhere without effect.
    """
    if sys.platform != "linux":
        return
    import resource

    Path("/proc/self/oom_score_adj").write_text("1000")
    told = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    most = int(told["MemAvailable"].split()[0]) * 768  # told in KiB
    resource.setrlimit(resource.RLIMIT_DATA, (most if soft == resource.RLIM_INFINITY else min(most, soft), hard))
    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
