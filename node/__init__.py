"""The asyncio daemon: performs the effects of protocols/ on sockets, disk, workers and HTTP."""
