"""The HTTP API and the server's images: what comes from outside is judged here, and decided below."""
