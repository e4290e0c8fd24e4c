"""The two processes of serving, the model server and the gateway: the part that needs aiohttp and prometheus-client."""

from __future__ import annotations
