"""What the system must have for a server, before it opens anything."""

import logging
import os

from fastmilter.server import descriptors, privileges
from fastmilter.server.listen import kernels_backlog
from fastmilter.server.peers import warnings_about
from fastmilter.server.settings import Settings

log = logging.getLogger(__name__)


def prepare(settings: Settings) -> privileges.Identity | None:
    """Check and provide what the system must have for ``settings``; return whom the workers become."""
    identity = privileges.identity_for(settings.user, settings.group, allow_root=settings.allow_root)
    descriptors.provide(settings)
    most = kernels_backlog()
    if most is not None and settings.backlog > most:
        log.warning("the kernel cuts the backlog of %d to %d: raise net.core.somaxconn", settings.backlog, most)
    if identity is None and os.geteuid() == 0:
        log.info("the filter runs as root: name a user for it (--user), or refuse this (allow_root = false)")
    for warning in warnings_about(settings):
        log.warning("%s", warning)
    return identity
