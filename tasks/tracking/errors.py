"""Kinds of errors of the tracking store: an outage, a refused login, and refused arguments."""

import re


def is_unavailable(error: Exception) -> bool:
    """Return whether an error means that the store is unavailable: no connection, time-out or server error.

    A database that is locked or damaged is unavailable, too.
    """
    import requests

    status = _status_of(error)
    if status is None and type(error).__module__.startswith("sqlalchemy."):
        return True
    if type(error.__cause__).__name__ == "DatabaseError":
        # MLflow reports a damaged database as an invalid request
        return True
    if status is None:
        return isinstance(error, (requests.ConnectionError, requests.Timeout))
    return status >= 500 or status in (408, 429)


def is_login_refused(error: Exception) -> bool:
    """Return whether the store refuses the user and the password."""
    return _status_of(error) in (401, 403)


def is_refused(error: Exception) -> bool:
    """Return whether the store or its client refuses the arguments of a call, so that another attempt fails, too."""
    if is_unavailable(error):
        return False
    status = _status_of(error)
    if status is None:
        return isinstance(error, (AssertionError, AttributeError, LookupError, TypeError, ValueError))
    return status in (400, 413, 422)


def _status_of(error: Exception) -> int | None:
    """HTTP status of an error; None if it has none."""
    import requests
    from mlflow.exceptions import MlflowException, RestException

    if isinstance(error, MlflowException):
        # MLflow's exception has only some of the statuses
        if answered := re.search(r"failed with error code (\d{3})\b", str(error)):
            return int(answered[1])
        is_from_client = not isinstance(error, RestException) and not str(error).startswith("API request to")
        if is_from_client and error.error_code == "INTERNAL_ERROR":
            # MLflow's checks of arguments have no code of their own
            return 400
        return int(error.get_http_status_code())  # type: ignore[no-untyped-call]  # mlflow's annotation
    if isinstance(error, requests.HTTPError) and error.response is not None:
        return error.response.status_code
    return None
