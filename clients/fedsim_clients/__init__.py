"""The client app, one device per node: senses, calibrates, evaluates. It never imports the
server."""
