"""What the system must have for a server, before it opens anything."""

import logging
import os

from fastmilter.server import descriptors, privileges
from fastmilter.server.advice import warnings_at_start
from fastmilter.server.settings import Settings

log = logging.getLogger(__name__)


def prepare(settings: Settings) -> privileges.Identity | None:
    """Check and provide what the system must have for ``settings``; return whom the workers become."""
    identity = privileges.identity_for(settings.user, settings.group, allow_root=settings.allow_root)
    descriptors.provide(settings)
    if identity is None and os.geteuid() == 0:
        log.info("the filter runs as root: name a user for it (--user), or refuse this (allow_root = false)")
    for warning in (*settings.warnings, *warnings_at_start(settings)):
        log.warning("%s", warning)
    return identity
