"""The kinds of values that options take, each with its range and with the words that an error has for it."""

from datetime import timedelta
from typing import Annotated

from msgspec import Meta

from .reading import DURATION_SECONDS_MAX
from .sizes import SIZE_ALLOWED, SIZE_BYTES_MAX, SIZE_BYTES_MIN

INTEGER_MAX = 2**31 - 1

Ratio = Annotated[float, Meta(ge=0, le=1, description="a number from 0 to 1")]

Seconds = Annotated[
    float, Meta(ge=0, le=DURATION_SECONDS_MAX, description="seconds, from 0 to 1e9", extra={"duration": True})
]
PositiveSeconds = Annotated[
    float,
    Meta(gt=0, le=DURATION_SECONDS_MAX, description="seconds, more than 0 and at most 1e9", extra={"duration": True}),
]
ResettingSeconds = Annotated[
    float,
    Meta(
        gt=0,
        le=DURATION_SECONDS_MAX,
        description="seconds, more than 0 and at most 1e9",
        extra={"duration": True, "resets": True},
    ),
]
LeaseSeconds = Annotated[
    float,
    Meta(
        ge=1,
        le=DURATION_SECONDS_MAX,
        description="seconds, 1 or more, or three heartbeat tries would not fit into a lease",
        extra={"duration": True, "resets": True},
    ),
]
Duration = Annotated[timedelta, Meta(description="a timedelta, seconds, or a text like '00:00:05'; not negative")]

Amount = Annotated[int, Meta(ge=0, le=INTEGER_MAX, description=f"a whole number from 0 to {INTEGER_MAX}")]
Count = Annotated[int, Meta(ge=1, le=INTEGER_MAX, description=f"a whole number from 1 to {INTEGER_MAX}")]
ResettingCount = Annotated[
    int, Meta(ge=1, le=INTEGER_MAX, description=f"a whole number from 1 to {INTEGER_MAX}", extra={"resets": True})
]
ConcurrentRuns = Annotated[int, Meta(ge=1, le=1000, description="a whole number from 1 to 1000")]
Size = Annotated[int, Meta(ge=SIZE_BYTES_MIN, le=SIZE_BYTES_MAX, description=SIZE_ALLOWED, extra={"size": True})]
Port = Annotated[int, Meta(ge=0, le=65535, description="a port number from 0 to 65535; 0 means any that is free")]

Name = Annotated[
    str,
    Meta(
        pattern=r"^(?=.*\S)[^\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]{1,200}\Z",
        description="text of 1 to 200 characters, none of them a control character",
    ),
]
WorkerName = Name
ApplicationName = Name
Host = Annotated[str, Meta(pattern=r"^[^\s/]{1,255}\Z", description="the name or the address of an interface")]
TablePrefix = Annotated[
    str,
    Meta(
        pattern=r"^[A-Za-z][A-Za-z0-9_]{0,15}\Z",
        description="an ASCII letter and up to 15 ASCII letters, digits or underscores",
    ),
]
