"""The two commands: `pintok-server` (server.py) and `pintok` (tool.py)."""
