"""Ray's errors in one line."""

from __future__ import annotations

from crmt.errors import CRMTError


def first_line(error: BaseException | str | None) -> str:
    """What went wrong, in one line: the innermost cause of a remote error."""
    if error is None:
        return "no error was recorded"
    seen: BaseException | str | None = error
    while isinstance(seen, BaseException) and (inner := _cause(seen)) is not None:
        seen = inner
    lines = [line.strip() for line in str(seen).splitlines() if line.strip()]
    text = lines[-1] if lines else type(seen).__name__
    return text if isinstance(seen, CRMTError | str) else f"{type(seen).__name__}: {text}"


def _cause(error: BaseException) -> BaseException | None:
    """What a remote error wraps; of several workers' errors one of ours, since the others only missed that worker."""
    failures = getattr(error, "worker_failures", None)
    if isinstance(failures, dict) and failures:
        found = [getattr(f, "_base_exc", f) for f in failures.values()]
        return next((f for f in found if isinstance(f, CRMTError)), found[0])
    names = ("cause", "_base_exc", "controller_failure", *(() if isinstance(error, CRMTError) else ("__cause__",)))
    wrapped = (getattr(error, name, None) for name in names)
    return next((w for w in wrapped if isinstance(w, BaseException) and w is not error), None)
