"""Winners behind one cluster: HTTP, Ray Serve, the same without a server."""
