"""What Google Cloud answers, told as errors that say whether another try can help, and records in Cloud Storage."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import Any
from urllib.parse import urlsplit

from airflow_ml_provider.exceptions import Conflict, MissingLibrary, SpecError, Unavailable


def require() -> None:
    """Raise `MissingLibrary` without the Google provider."""
    try:
        import airflow.providers.google.cloud.hooks.vertex_ai.endpoint_service  # noqa: F401
    except ImportError as error:
        raise MissingLibrary(
            f"Vertex AI needs the Google provider: pip install 'airflow-ml-provider[google]' ({error})"
        ) from error


@contextmanager
def explained(conn_id: str, what: str) -> Iterator[None]:
    """Turn what goes wrong on the way to Google Cloud into errors of this package.

    Parameters:
        conn_id: the connection.
        what: what is asked.

    Raises:
        SpecError: the connection has no or wrong credentials, may not do this, or it is not taken.
        Unavailable: there is no answer, or none now.
    """
    from airflow.providers.common.compat.sdk import AirflowNotFoundException
    from google.api_core import exceptions as google
    from google.auth.exceptions import GoogleAuthError

    try:
        yield
    except (AirflowNotFoundException, GoogleAuthError) as error:
        raise SpecError(f"connection {conn_id!r} does not say how to reach Google Cloud: {error}") from error
    except (
        google.ServerError, google.TooManyRequests, google.RetryError,
        google.Aborted, google.FailedPrecondition,  # another operation on the same thing runs
    ) as error:  # fmt: skip
        raise Unavailable(f"{what} of connection {conn_id!r} cannot now: {error}") from error
    except google.GoogleAPICallError as error:
        raise SpecError(f"{what} of connection {conn_id!r} does not take this: {error}") from error


class GcsRecords:
    """Records in Cloud Storage, written by generation; fulfils `stages.deploy.recorded.Records`.

    Parameters:
        address: `gs://BUCKET/PREFIX`.
        conn_id: connection to Google Cloud.
    """

    def __init__(self, address: str, conn_id: str) -> None:
        parts = urlsplit(address)
        self.bucket, self.prefix, self.conn_id = parts.netloc, parts.path.strip("/"), conn_id

    def read(self, name: str) -> tuple[str, str] | None:
        """Return the text and its generation, or none."""
        from google.api_core.exceptions import NotFound

        with explained(self.conn_id, "Cloud Storage"):
            blob = self._blob(name)
            try:
                text = blob.download_as_bytes().decode()
            except NotFound:
                return None
            return text, str(blob.generation)

    def write(self, name: str, text: str, revision: str | None) -> str:
        """Write a text instead of that of a generation, or where there is none; return the new generation."""
        from google.api_core.exceptions import PreconditionFailed

        with explained(self.conn_id, "Cloud Storage"):
            blob = self._blob(name)
            try:
                blob.upload_from_string(text.encode(), "application/json", if_generation_match=int(revision or 0))
            except PreconditionFailed as error:
                raise Conflict(f"service {name!r} was changed by somebody else at this moment") from error
            return str(blob.generation)

    def delete(self, name: str) -> None:
        """Delete a text; none is no error."""
        from google.api_core.exceptions import NotFound

        with explained(self.conn_id, "Cloud Storage"):
            try:
                self._blob(name).delete()
            except NotFound:
                return

    def _blob(self, name: str) -> Any:
        return self._client.bucket(self.bucket).blob(f"{self.prefix}/{name}.json".lstrip("/"))

    @cached_property
    def _client(self) -> Any:
        require()
        from airflow.providers.google.cloud.hooks.gcs import GCSHook

        return GCSHook(gcp_conn_id=self.conn_id).get_conn()
