"""Object stores: what their URIs may say, and how one is opened."""

import functools
import re
from datetime import timedelta
from typing import Any
from urllib.parse import parse_qsl

from pyarrow import fs

from lahr.errors import check

_ANSWER_S, _CONNECT_S = 10.0, 3.0
"""How long a store may be silent within one attempt."""
_SECRET = re.compile(r"key|secret|token|password|credential|signature|sas", re.IGNORECASE)


@functools.lru_cache(maxsize=64)
def opened(uri: str, impatient: bool, process: int) -> tuple[fs.FileSystem, str]:
    """The filesystem of a URI and the path in it. Kept, since its connections are; but not over a fork, hence the
    number of the process. An impatient one gives up sooner where nobody answers."""
    filesystem, path = fs.FileSystem.from_uri(uri)
    # Patience is ours: by itself S3's client tries again for six seconds, or a hundred where a server says nothing, and
    # Google's for a quarter of an hour. A URI cannot tell them so.
    answer_s = _CONNECT_S if impatient else _ANSWER_S
    if isinstance(filesystem, fs.S3FileSystem):
        retries = fs.AwsStandardS3RetryStrategy(max_attempts=1)
        filesystem = _with(filesystem, retry_strategy=retries, connect_timeout=_CONNECT_S, request_timeout=answer_s)
    elif isinstance(filesystem, fs.GcsFileSystem):
        filesystem = _with(filesystem, retry_time_limit=timedelta(seconds=answer_s))
    return filesystem, path


def _with(filesystem: fs.FileSystem, **changed: Any) -> fs.FileSystem:
    """The same, made once more with other options: from those that pickling knows of it."""
    make, (options,) = filesystem.__reduce__()
    return make({**options, **changed})


def look_at(uri: str) -> None:
    """Raises pyarrow's error for a URI that it cannot read. Asks nobody: S3 would be asked for a missing region."""
    if uri.startswith("s3://") and "region=" not in uri:
        uri = f"{uri}{'&' if '?' in uri else '?'}region=us-east-1"
    fs.FileSystem.from_uri(uri)


def refuse_secrets(uri: str) -> None:
    """`ConfigError`, which does not repeat it, for a URI that carries credentials: it would stand in files and logs."""
    scheme, _, rest = uri.partition("://")
    base, _, query = rest.partition("?")
    user = re.match(r"[^@/]*(@|:[^@]*@)" if scheme == "s3" else r"[^@/]*:[^@/]*@", base)
    # `@` in a value: user and password before the host of an endpoint_override
    named = any(_SECRET.search(name) or "@" in value for name, value in parse_qsl(query, keep_blank_values=True))
    check(
        not user and not named,
        f"the {scheme}:// URI carries credentials, which would then stand in files and logs; take them out, and give "
        "them in the environment (AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY), as a profile (AWS_PROFILE), or as the "
        "machine's role",
    )
