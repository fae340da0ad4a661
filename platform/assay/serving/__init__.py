"""Winners behind one cluster: the HTTP contract, the judging behind it, Ray Serve, a client, a page."""
