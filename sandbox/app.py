"""The sandbox as one ASGI application."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from starlette.applications import Starlette
from starlette.routing import Mount

from sandbox import control
from sandbox.apimodels import Apimodels
from sandbox.chanjing import Chanjing
from sandbox.kitta import Kitta
from sandbox.lipsync_studio import LipsyncStudio
from sandbox.media.routes import routes as media_routes
from sandbox.world import World


def create_app(seconds: float, speed: float, chanjing_submits: tuple[int, float]) -> Starlette:
    """All vendors, each at `/{slug}`.

    Args:
        seconds: How long a job takes.
        speed: Divides the waits between retries.
        chanjing_submits: So many submissions in so many seconds are all that Chanjing takes.

    The application's `state.world` is its World: whoever runs the server calls `world.stop()` before it waits for open
    connections.
    """
    world = World(seconds, speed)
    vendors = [LipsyncStudio(world), Kitta(world), Chanjing(world, chanjing_submits), Apimodels(world)]

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        yield
        world.stop()
        await world.sender.close()

    mounts = [Mount(f"/{vendor.slug}", routes=vendor.routes()) for vendor in vendors]
    app = Starlette(routes=[*control.routes(world, vendors), *media_routes(world), *mounts], lifespan=lifespan)
    app.state.world = world
    return app
