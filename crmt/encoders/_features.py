"""The widths that encoders of ours can have."""

from __future__ import annotations

from crmt.errors import BadInputError


def check_features(features: int) -> None:
    """Refuse a width that does not divide into those of the inner layers.

    Raises:
        BadInputError: `features` is not a multiple of 8.
    """
    if features < 8 or features % 8:
        raise BadInputError(f"features must be a multiple of 8, not {features}")
