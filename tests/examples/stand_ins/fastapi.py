"""As much of FastAPI as `examples.fastapi_lifespan` uses, over Starlette, for where FastAPI is not installed."""

import inspect
from collections.abc import Callable
from typing import Any

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException as HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

Function = Callable[..., Any]


class FastAPI(Starlette):
    def get(self, path: str) -> Callable[[Function], Function]:
        return self._answered("GET", path, 200)

    def post(self, path: str, status_code: int = 200) -> Callable[[Function], Function]:
        return self._answered("POST", path, status_code)

    def _answered(self, method: str, path: str, status_code: int) -> Callable[[Function], Function]:
        def register(function: Function) -> Function:
            async def endpoint(request: Request) -> JSONResponse:
                kinds = inspect.get_annotations(function)
                arguments = {name: kinds[name](text) for name, text in request.path_params.items()}
                is_async = inspect.iscoroutinefunction(function)
                answer = await (function(**arguments) if is_async else run_in_threadpool(function, **arguments))
                return JSONResponse(answer, status_code)

            self.routes.append(Route(path, endpoint, methods=[method]))
            return function

        return register
