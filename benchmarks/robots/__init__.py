"""Robots, their server, and a network between them that is not to be trusted."""
