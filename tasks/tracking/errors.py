"""Kinds of errors of the tracking store: an outage, and a refused login."""


def is_unavailable(error: Exception) -> bool:
    """Return whether an error means that the store is unavailable: no connection, time-out or server error.

    A database that is locked or damaged is unavailable, too.
    """
    import requests

    status = _status_of(error)
    if status is None and type(error).__module__.startswith("sqlalchemy."):
        return True
    if status is None:
        return isinstance(error, (requests.ConnectionError, requests.Timeout))
    return status >= 500 or status in (408, 429)


def is_login_refused(error: Exception) -> bool:
    """Return whether the store refuses the user and the password."""
    return _status_of(error) in (401, 403)


def _status_of(error: Exception) -> int | None:
    """HTTP status of an error; None if it has none."""
    import requests
    from mlflow.exceptions import MlflowException

    if isinstance(error, MlflowException):
        return int(error.get_http_status_code())  # type: ignore[no-untyped-call]  # mlflow's annotation
    if isinstance(error, requests.HTTPError) and error.response is not None:
        return error.response.status_code
    return None
