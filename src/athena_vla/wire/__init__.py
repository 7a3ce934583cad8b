"""Both ends of the socket: server, client, protocols, codec, request queue, metrics."""
