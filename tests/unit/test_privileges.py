"""Whom a filter runs as: what is decided. (That it becomes true: tests/process/test_privileges.py.)"""

import grp
import os
import pwd

import pytest

from fastmilter.errors import ConfigError
from fastmilter.server.privileges import identity_for

DAEMON = pwd.getpwnam("daemon")
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


@needs_root
def test_names_and_numbers() -> None:
    identity = identity_for("daemon", None, allow_root=False)
    assert identity is not None
    assert (identity.uid, identity.gid, identity.home) == (DAEMON.pw_uid, DAEMON.pw_gid, DAEMON.pw_dir)
    assert set(identity.groups) == set(os.getgrouplist("daemon", DAEMON.pw_gid))
    by_number = identity_for(str(DAEMON.pw_uid), str(DAEMON.pw_gid), allow_root=False)
    assert by_number is not None
    assert (by_number.uid, by_number.gid, by_number.groups) == (identity.uid, identity.gid, identity.groups)
    other = identity_for("daemon", "mail", allow_root=False)
    assert other is not None
    assert other.gid == grp.getgrnam("mail").gr_gid in other.groups


@needs_root
def test_a_number_that_nobody_has_needs_a_group() -> None:
    identity = identity_for("54321", "12345", allow_root=False)
    assert identity is not None
    assert (identity.uid, identity.gid, identity.groups, identity.home) == (54321, 12345, (12345,), None)
    with pytest.raises(ConfigError, match=r"user 54321 is not in the user database: name its group too \(--group\)"):
        identity_for("54321", None, allow_root=False)


@pytest.mark.parametrize(
    ("user", "group", "error"),
    [
        ("no-such-user", None, "there is no user 'no-such-user'"),
        ("daemon", "no-such-group", "there is no group 'no-such-group'"),
        ("4294967295", "daemon", "there is no user '4294967295'"),  # (uid_t) -1 means "leave it as it is"
        ("-1", "daemon", "there is no user '-1'"),
        (None, "daemon", "--group goes with --user"),
    ],
)
def test_what_there_is_not(user: str | None, group: str | None, error: str) -> None:
    with pytest.raises(ConfigError, match=error):
        identity_for(user, group, allow_root=True)


@needs_root
def test_root_must_be_meant() -> None:
    with pytest.raises(ConfigError, match="the filter would run as root"):
        identity_for(None, None, allow_root=False)
    assert identity_for(None, None, allow_root=True) is None
    for root in ("root", "0"):
        with pytest.raises(ConfigError, match=f"--user {root} would run the filter as root"):
            identity_for(root, None, allow_root=False)
        identity = identity_for(root, None, allow_root=True)
        assert identity is not None
        assert identity.uid == 0


@needs_root
@pytest.mark.parametrize(
    ("user", "group", "error"),
    [
        (None, None, None),
        ("daemon", None, None),
        ("daemon", "mail", "only root can run the filter as user 'daemon'"),
        ("mail", None, "only root can run the filter as user 'mail'"),
        ("root", None, "would run the filter as root"),
    ],
)
def test_who_is_not_root_stays_who_it_is(user: str | None, group: str | None, error: str | None) -> None:
    child = os.fork()
    if child == 0:
        status = 2
        try:
            os.setgid(DAEMON.pw_gid)
            os.setuid(DAEMON.pw_uid)
            status = int(identity_for(user, group, allow_root=False) is not None)
        except ConfigError as refusal:
            status = 0 if error is not None and error in str(refusal) else 3
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
