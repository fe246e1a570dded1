"""What many sessions cost, and that a daemon is made ready for it."""

import resource

from tests.support.daemon import Daemon


async def test_a_daemon_raises_its_own_limit_of_open_files(house: Daemon):
    allowed, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(1024, allowed), most))
    try:
        await house.start("--backend", "rehearsal", "--no-heartbeat")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, most))
    wanted = 65_536 if most == resource.RLIM_INFINITY else min(65_536, most)
    assert resource.prlimit(house.pid, resource.RLIMIT_NOFILE) == (wanted, most)
