"""Arguments as JSON text: checked against the job's type when enqueued, and again when executed."""

from __future__ import annotations

import math
from typing import Any, get_origin

import msgspec

from durablestack.errors import JobDefinitionError, PayloadError

# Not only msgspec's own errors: deep nesting raises RecursionError, large integers OverflowError,
# lone surrogates UnicodeEncodeError, foreign objects TypeError.
_ENCODING_ERRORS = (msgspec.MsgspecError, RecursionError, OverflowError, UnicodeError, TypeError, ValueError)


class PayloadCodec:
    """Arguments of one job to JSON text and back.

    Raises:
        JobDefinitionError: msgspec cannot decode into `args_type`.
    """

    def __init__(self, job_name: str, args_type: Any, *, takes_args: bool) -> None:
        self._job_name = job_name
        self._takes_args = takes_args
        self._type_name = getattr(args_type, "__name__", str(args_type))
        try:
            self._decoder = msgspec.json.Decoder(args_type)
            msgspec.json.schema(args_type, schema_hook=_refuse_foreign_type)  # a decoder would take any class
        except (TypeError, NotImplementedError, NameError) as error:
            raise JobDefinitionError(
                f"job {job_name!r}: arguments of type {self._type_name} cannot be read from JSON ({error}); "
                "use a msgspec Struct, a dataclass, a TypedDict or builtin types"
            ) from None

    def encode(self, args: Any, bytes_max: int) -> str | None:
        """The payload for `args`; None for a job without arguments.

        Raises:
            PayloadError: not JSON, not of the job's type, or longer than `bytes_max` bytes.
        """
        if not self._takes_args:
            if args is not None:
                raise PayloadError(f"job {self._job_name!r} takes no arguments, but got {_shown(args)}")
            return None
        try:
            payload = msgspec.json.encode(args)
            text = payload.decode()
            # a float that is not finite is written as null, and would be read as None
            non_finite = b"null" in payload and _holds_non_finite_float(msgspec.to_builtins(args))
        except _ENCODING_ERRORS as error:
            raise PayloadError(f"arguments of job {self._job_name!r} cannot be written as JSON: {error}") from None
        if len(payload) > bytes_max:
            raise PayloadError(
                f"arguments of job {self._job_name!r} are {len(payload)} bytes of JSON; allowed are {bytes_max} "
                "(option payload_bytes_max): store large data elsewhere, and pass where it is"
            )
        if non_finite:
            raise PayloadError(f"arguments of job {self._job_name!r} hold a float that is not finite; JSON has none")
        self.decode(text)
        return text

    def decode(self, payload: str | None) -> Any:
        """The arguments in `payload`.

        Raises:
            PayloadError: they are not what the job takes.
        """
        try:
            return self._decoder.decode("null" if payload is None else payload)
        except _ENCODING_ERRORS as error:
            if payload in (None, "null"):
                raise PayloadError(f"job {self._job_name!r} takes {self._type_name}, and got no arguments") from None
            raise PayloadError(
                f"job {self._job_name!r} takes {self._type_name}, which its arguments are not: {error}"
            ) from None


def _refuse_foreign_type(kind: Any) -> dict[str, Any]:
    """Asked by msgspec about a type that it does not know. It will do if a JSON value can be one, as with `object`."""
    if any(issubclass(json_type, get_origin(kind) or kind) for json_type in (dict, list, str, int, float)):
        return {"title": str(kind)}
    raise TypeError(f"type {getattr(kind, '__name__', kind)} is unknown to it")


def _holds_non_finite_float(value: Any) -> bool:
    waiting = [value]  # not recursive: what msgspec can write may be nested deeper than Python calls may be
    while waiting:
        match waiting.pop():
            case float() as number if not math.isfinite(number):
                return True
            case dict() as members:
                waiting += members.values()
            case list() | tuple() | set() | frozenset() as items:
                waiting += items
    return False


def _shown(value: Any) -> str:
    """What a value is, without what is in it: arguments may be secret."""
    return f"a value of type {type(value).__name__}"
