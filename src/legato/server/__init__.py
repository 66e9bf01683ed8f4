"""The server: ASGI application, routes, and the pump that writes streams."""
