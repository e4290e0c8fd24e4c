"""What AWS answers, told as errors that say whether another try can help, and records in S3."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import Any
from urllib.parse import urlsplit

from airflow_ml_provider.exceptions import Conflict, MissingLibrary, SpecError, Unavailable

_BUSY = ("Throttl", "TooManyRequests", "SlowDown", "ResourceLimitExceeded", "ResourceInUse", "RequestTimeout")
# Somebody else was quicker, or AWS does not see everywhere yet what was made.
_LATER = re.compile(r"in-progress|already existing|Could not find")
_CHANGED = ("PreconditionFailed", "ConditionalRequestConflict", "NoSuchKey")


def require() -> None:
    """Raise `MissingLibrary` without the Amazon provider."""
    try:
        import airflow.providers.amazon.aws.hooks.sagemaker  # noqa: F401
    except ImportError as error:
        raise MissingLibrary(
            f"SageMaker needs the Amazon provider: pip install 'airflow-ml-provider[amazon]' ({error})"
        ) from error


def code_of(error: Any) -> str:
    """Return AWS' code of a client's error."""
    return str(error.response.get("Error", {}).get("Code", ""))


@contextmanager
def explained(conn_id: str, what: str) -> Iterator[None]:
    """Turn what goes wrong on the way to AWS into errors of this package.

    Parameters:
        conn_id: the connection.
        what: what is asked.

    Raises:
        SpecError: the connection has no or wrong credentials, may not do this, or AWS does not take it.
        Unavailable: AWS does not answer, or answers that it cannot now.
    """
    from airflow.providers.common.compat.sdk import AirflowNotFoundException
    from botocore import exceptions as aws

    try:
        yield
    except (AirflowNotFoundException, aws.NoCredentialsError, aws.NoRegionError) as error:
        raise SpecError(f"connection {conn_id!r} does not say how to reach AWS: {error}") from error
    except aws.ClientError as error:
        status = int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
        if status >= 500 or code_of(error).startswith(_BUSY) or _LATER.search(str(error)):
            raise Unavailable(f"{what} of connection {conn_id!r} cannot now: {error}") from error
        raise SpecError(f"{what} of connection {conn_id!r} does not take this: {error}") from error
    except (aws.HTTPClientError, aws.ConnectionError) as error:
        raise Unavailable(f"{what} of connection {conn_id!r} does not answer: {error}") from error
    except aws.BotoCoreError as error:
        raise SpecError(f"{what} cannot be asked: {error}") from error


class S3Records:
    """Records in S3, written by its conditional writes; fulfils `stages.deploy.recorded.Records`.

    Parameters:
        address: `s3://BUCKET/PREFIX`.
        conn_id: connection to AWS.
        region: AWS region; empty takes that of the connection.
    """

    def __init__(self, address: str, conn_id: str, region: str = "") -> None:
        parts = urlsplit(address)
        self.bucket, self.prefix = parts.netloc, parts.path.strip("/")
        self.conn_id, self.region = conn_id, region

    def read(self, name: str) -> tuple[str, str] | None:
        """Return the text and its ETag, or none."""
        from botocore.exceptions import ClientError

        with explained(self.conn_id, "S3"):
            try:
                found = self._client.get_object(**self._where(name))
                return found["Body"].read().decode(), found["ETag"]
            except ClientError as error:
                if code_of(error) != "NoSuchKey":
                    raise
                return None

    def write(self, name: str, text: str, revision: str | None) -> str:
        """Write a text instead of that of an ETag, or where there is none; return the new ETag."""
        from botocore.exceptions import ClientError

        condition = {"IfNoneMatch": "*"} if revision is None else {"IfMatch": revision}
        with explained(self.conn_id, "S3"):
            try:
                made = self._client.put_object(**self._where(name), Body=text.encode(), **condition)
            except ClientError as error:
                if code_of(error) not in _CHANGED:
                    raise
                raise Conflict(f"service {name!r} was changed by somebody else at this moment") from error
        return str(made["ETag"])

    def delete(self, name: str) -> None:
        """Delete a text; none is no error."""
        with explained(self.conn_id, "S3"):
            self._client.delete_object(**self._where(name))

    def _where(self, name: str) -> dict[str, str]:
        return {"Bucket": self.bucket, "Key": f"{self.prefix}/{name}.json".lstrip("/")}

    @cached_property
    def _client(self) -> Any:
        require()
        from airflow.providers.amazon.aws.hooks.s3 import S3Hook

        return S3Hook(aws_conn_id=self.conn_id, region_name=self.region or None).get_conn()
