"""The errors of this project: each message says what was wrong, where, and what to do."""

from __future__ import annotations


class CRMTError(Exception):
    """Base of every error that this project raises on purpose. At the command line: one line, exit code 1."""


class BadInputError(CRMTError, ValueError):
    """What the user gave cannot be used as it is. At the command line: one line, exit code 2."""


class CRMTWarning(UserWarning):
    """What can be done, but probably is not what was meant. Turn it into an error with `warnings.simplefilter`."""
