"""What a device does: sense, calibrate, evaluate. It never imports the server."""
